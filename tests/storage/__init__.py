"""Tests of bert_jax/storage."""
