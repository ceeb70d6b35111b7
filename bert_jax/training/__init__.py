"""The step and the loop of any objective."""
