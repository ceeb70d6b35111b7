"""A trained model applied to text."""
