"""Fine-tuning: one output layer, all parameters trained (BERT, section 4)."""
