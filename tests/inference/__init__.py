"""Tests of bert_jax/inference."""
