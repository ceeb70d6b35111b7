"""Estimates time, memory and price of a run on a TPU slice, without the slice.

Rule: compiles the step that `train` runs, for devices that libtpu describes.
"""
