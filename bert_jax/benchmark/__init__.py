"""Measures speed on the devices at hand: our step, its input, and torch's.

Rule: times the code of other folders; estimates nothing.
"""
