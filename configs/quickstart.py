"""A small BERT from raw text to a filled mask, on a laptop.

  bash launch/quickstart.sh

Hardware: two CPU cores.

Tiny on purpose: in a few minutes it learns which words are common and, a
little, which texts belong together; not what fills a gap. What differs from
the paper's recipe is what a model of 2 layers of 128 and so few steps asks for.
"""

from bert_jax.config import default_config


def get_config():
  config = default_config()
  config.model.hidden_size = 128
  config.model.num_hidden_layers = 2
  config.model.num_attention_heads = 2
  config.model.intermediate_size = 512
  # A sixth of BERT-base's width: wider weights keep the sums as large.
  config.model.initializer_range = 0.1
  # Two or three passes over the text overfit nothing.
  config.model.hidden_dropout_prob = 0.0
  config.model.attention_probs_dropout_prob = 0.0
  config.model.dtype = "float32"
  config.corpus.vocab_size = 8_000
  config.corpus.eval_fraction = 0.05  # 12 of 249 documents
  config.phase1.num_steps = 1_500
  config.phase1.batch_size = 32
  config.phase2.num_steps = 60
  config.phase2.batch_size = 16
  config.optimizer.learning_rate = 4e-3
  config.optimizer.warmup_steps = 200
  config.eval.every_steps = 300
  config.eval.num_batches = 20
  config.checkpoint.every_steps = 300
  config.log.every_steps = 50
  return config
