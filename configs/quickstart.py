"""A small BERT from raw text to a filled mask, on a laptop.

  bash launch/quickstart.sh

Hardware: two CPU cores. The text comes with the installation.
"""

from bert_jax.config import default_config


def get_config():
  config = default_config()
  # "Tiny": 2 layers of 128.
  config.model.hidden_size = 128
  config.model.num_hidden_layers = 2
  config.model.num_attention_heads = 2
  config.model.intermediate_size = 512
  config.model.dtype = "float32"
  config.corpus.vocab_size = 8_000
  config.corpus.eval_fraction = 0.05
  config.phase1.num_steps = 900
  config.phase1.batch_size = 64
  config.phase2.num_steps = 100
  config.phase2.batch_size = 16
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 100
  config.eval.every_steps = 300
  config.eval.num_batches = 10
  config.checkpoint.every_steps = 200
  config.log.every_steps = 50
  return config
