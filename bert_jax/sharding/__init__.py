"""The mesh: which device holds what, and how it crosses the links."""
