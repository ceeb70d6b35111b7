"""Tests of bert_jax/weights."""
