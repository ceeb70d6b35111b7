"""Any table of texts with a label: a class, several labels, or a number.

  python -m bert_jax.finetune --config=configs/finetune_classification.py \\
    --workdir=W --init=H --config.data.train=train.csv --config.data.dev=dev.csv

Columns are named by the table's first line: --config.data.text_a=review
--config.data.label=stars, and --config.data.text_b for pairs; or by number,
where there is no such line: --config.data.header=False --config.data.text_a=2.
Several labels a row: --config.task.kind=multilabel. A number:
--config.task.kind=regression.

Hardware: any one accelerator; a small model also two CPU cores.
"""

from bert_jax.finetune.config import default_config


def get_config():
  return default_config()
