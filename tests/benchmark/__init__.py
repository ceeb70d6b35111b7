"""Tests of bert_jax/benchmark."""
