"""Reads a compiled program; knows nothing of models or runs."""
