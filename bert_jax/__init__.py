"""BERT pretraining in JAX, from raw text to a Hugging Face checkpoint."""
