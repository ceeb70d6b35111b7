"""Tests of bert_jax/hlo."""
