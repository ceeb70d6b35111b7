"""Models in and out: Hugging Face, TensorFlow 1 and torch files.

Rule: turns other people's folders into our parameters and back, and refuses
what it can't represent.
"""
