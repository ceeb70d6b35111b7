"""A small BERT from raw text to a filled mask, on a laptop.

  bash launch/quickstart.sh

Hardware: two CPU cores, six minutes. Expected, held out at length 128:
masked-LM loss 4.3, where guessing by word frequency alone scores 6.5.

What differs from the paper's recipe, because 2 layers of 128 and so few steps
ask for it: short sequences first (attention finds a neighbour among 32
tokens much sooner than among 128), no dropout, wider initial weights, a high
learning rate, and a vocabulary of 5,000. docs/evidence.md has the trials.
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
  config.corpus.vocab_size = 5_000
  config.corpus.eval_fraction = 0.1  # 24 of 249 documents
  config.phase1.max_seq_length = 32
  config.phase1.num_steps = 800
  config.phase1.batch_size = 128
  config.phase1.max_predictions = 5  # 15 % of 32, rounded up
  config.phase2.max_seq_length = 128
  config.phase2.num_steps = 800
  config.phase2.batch_size = 32
  config.phase2.max_predictions = 20
  config.optimizer.learning_rate = 4e-3
  config.optimizer.warmup_steps = 300
  config.eval.every_steps = 800
  config.eval.num_batches = 60
  config.checkpoint.every_steps = 400
  config.log.every_steps = 50
  return config
