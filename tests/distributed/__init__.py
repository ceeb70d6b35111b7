"""Tests of bert_jax/distributed."""
