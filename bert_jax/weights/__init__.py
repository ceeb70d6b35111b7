"""Models in and out: Hugging Face, TensorFlow 1 and torch files."""
