"""A trained model applied to text: vectors and fillings.

Rule: reads models through `weights`, trains nothing.
"""
