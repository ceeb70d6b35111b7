"""From raw text to training batches.

Rule: numpy and no JAX, so that workers start at once; only `pipeline` imports
TensorFlow.
"""
