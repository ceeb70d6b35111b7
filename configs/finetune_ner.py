"""Tags words, such as names of people and places (BERT, section 5.3).

  python -m bert_jax.finetune --config=configs/finetune_ner.py --workdir=W \\
    --init=H --config.data.train=train.txt --config.data.dev=valid.txt

The files have a word a line with its tag in the last column, and an empty line
between sentences, as CoNLL-2003's have. JSON lines hold two lists:
--config.data.text_a=tokens --config.data.label=tags.

Hardware: any one accelerator.
Expected, as published for BERT-base, cased: CoNLL-2003 test F1 92.4.
"""

from bert_jax.finetune.config import default_config


def get_config():
  config = default_config()
  config.task.kind = "tagging"
  config.data.text_a = "1"
  config.data.label = "-1"
  return config
