"""Speed on the devices at hand: the step, its input, and the peer's.

Rule: times what other folders make; no figure is computed from another.
"""
