"""BERT pretraining in JAX, from raw text to a Hugging Face checkpoint.

The files beside this one are commands (`python -m bert_jax.train`), which hold
flags and one call, and what every folder may import: `errors`, `config` and
`command`. Each folder's docstring says its rule; `tests/test_imports.py` says
which folder may import which.
"""
