"""Tests of bert_jax/model."""
