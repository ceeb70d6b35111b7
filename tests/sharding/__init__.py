"""Tests of bert_jax/sharding."""
