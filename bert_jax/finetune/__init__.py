"""Fine-tuning: one output layer, all parameters trained (BERT, section 4).

Rule: `tasks.py` is the table of task kinds: reader, features, output layer,
loss, metrics. Nothing here imports `pretraining`.
"""
