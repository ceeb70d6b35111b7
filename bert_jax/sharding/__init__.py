"""The mesh of devices, how arrays are sharded over it, and collectives.

Rule: knows parameters by their paths and shapes, never what they compute.
"""
