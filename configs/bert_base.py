"""BERT-base"""

from bert_jax.config import default_config


def get_config():
  return default_config()
