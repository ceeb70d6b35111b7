"""Sentence vectors from a BERT, for search, clustering and deduplication.

  python -m bert_jax.finetune --config=configs/finetune_similarity.py:pairs \\
    --workdir=W --init=H --config.data.train=pairs.jsonl \\
    --config.data.dev=scored.jsonl

What is trained on is one of

  pairs      texts that belong together, in columns text_a and text_b
  triplets   a text, one that is like it and one that is not (text_c)
  sentences  a plain text file, a sentence on each line
  scores     pairs with a number for how alike they are, as in STS-B

The held-out file has scored pairs: --config.data.scored.text_a, text_b and
label name its columns, --config.task.max_score its highest score. The exported
folder is one that sentence-transformers loads.

Hardware: any one accelerator; a small model also two CPU cores.
Expected on STS-B's test set, as published for BERT-base (Spearman): scores 84
to 85; sentences alone (SimCSE) 76 on average over seven STS sets.
"""

from bert_jax.errors import UserError
from bert_jax.finetune.config import default_config

# Columns of two texts and a third, epochs, batch and learning rate.
_TRAINING = {
  "pairs": ("text_a", "text_b", "", 1.0, 64, 2e-5),
  "triplets": ("text_a", "text_b", "text_c", 1.0, 64, 2e-5),
  "sentences": ("", "", "", 1.0, 64, 3e-5),
  "scores": ("sentence1", "sentence2", "", 4.0, 32, 2e-5),
}


def get_config(training="pairs"):
  if training not in _TRAINING:
    raise UserError(
      f"similarity has no training {training!r}; expected "
      f"{', '.join(_TRAINING)}"
    )
  text_a, text_b, text_c, num_epochs, batch_size, rate = _TRAINING[training]
  config = default_config()
  config.task.kind = "similarity"
  config.data.text_a = text_a or "sentence"
  config.data.text_b, config.data.text_c = text_b, text_c
  config.data.label = "score" if training == "scores" else ""
  config.data.max_seq_length = 64
  if training == "sentences":
    config.data.format = "lines"
    config.task.pooling = "cls"
  config.train.num_epochs = num_epochs
  config.train.batch_size = batch_size
  config.optimizer.learning_rate = rate
  return config
