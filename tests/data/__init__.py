"""Tests of bert_jax/data."""
