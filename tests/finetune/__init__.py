"""Tests of bert_jax/finetune."""
