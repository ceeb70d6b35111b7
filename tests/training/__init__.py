"""Tests of bert_jax/training."""
