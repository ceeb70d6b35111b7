"""SQuAD 1.1 and 2.0 (BERT, sections 4.2 and 4.3).

  python -m bert_jax.finetune --config=configs/finetune_squad.py:1.1 \\
    --workdir=W --init=H \\
    --config.data.train=train-v1.1.json --config.data.dev=dev-v1.1.json

The version is 1.1 or 2.0, where a question may have no answer. The workdir's
predictions.json is what SQuAD's script reads; null_odds_predictions.json goes
to its --na-prob-file.

Hardware: any one accelerator.
Expected on the dev sets, as published for BERT-base: 1.1 F1 88.4, EM 81.3.
"""

from bert_jax.errors import UserError
from bert_jax.finetune.config import default_config

# Epochs and batch of the paper; the rate is 5e-5 for both.
_VERSIONS = {"1.1": (3.0, 32), "2.0": (2.0, 48)}


def get_config(version="1.1"):
  if version not in _VERSIONS:
    raise UserError(f"SQuAD has no version {version!r}; expected 1.1 or 2.0")
  config = default_config()
  config.task.kind = "question_answering"
  config.task.no_answer = version == "2.0"
  config.data.max_seq_length = 384
  config.train.num_epochs, config.train.batch_size = _VERSIONS[version]
  return config
