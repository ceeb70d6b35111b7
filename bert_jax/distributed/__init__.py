"""Several processes and hosts as one run.

Rule: nothing of BERT and nothing of the devices; processes exchange values
through JAX's coordination service.
"""
