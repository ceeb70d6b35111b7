"""A trained model applied to text: vectors, fillings, judgements, scores.

Rule: reads models through `weights`; trains nothing.
"""
