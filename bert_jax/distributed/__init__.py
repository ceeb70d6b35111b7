"""Several processes and hosts as one run.

Rule: nothing of BERT and nothing of the devices; what processes say to one
another goes through JAX's coordination service.
"""
