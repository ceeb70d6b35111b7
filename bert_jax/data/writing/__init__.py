"""Writes a corpus: on one machine or in parts, each document once."""
