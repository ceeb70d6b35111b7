"""BERT's two tasks: masked language model and next sentence."""
