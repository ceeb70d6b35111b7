"""BERT's two tasks, and a run of them from its first start to its export.

Rule: the only place that joins text, model, step and workdir for pretraining.
"""
