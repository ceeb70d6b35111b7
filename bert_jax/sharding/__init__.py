"""The mesh of devices: what each holds, and how it crosses the links.

Rule: knows parameters by their paths and shapes, never what they compute.
"""
