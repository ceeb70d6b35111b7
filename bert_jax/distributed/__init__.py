"""Processes and hosts as one; nothing of BERT."""
