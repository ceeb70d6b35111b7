"""Tests of bert_jax/planning."""
