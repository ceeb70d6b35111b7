"""Tests of bert_jax/pretraining."""
