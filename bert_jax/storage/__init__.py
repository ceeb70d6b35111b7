"""The folder of a run: settings, checkpoints, metrics, locks.

Rule: whatever is read from or written to a workdir passes through here, on a
disk and on gs:// alike.
"""
