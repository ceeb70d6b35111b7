"""Predictions of a fine-tuned model; `__main__` holds the command's flags."""
