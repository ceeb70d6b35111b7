"""A pod that nobody has rented: does a run fit, how long, how much.

Rule: compiles the step that `train` runs, for devices that are only described.
"""
