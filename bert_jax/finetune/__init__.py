"""Fine-tuning: one output layer, all parameters trained (BERT, section 4).

Rule: a task is a kind (`tasks.py`) of readers, features, head, loss and
metrics; nothing of pretraining.
"""
