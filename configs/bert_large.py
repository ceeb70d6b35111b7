"""BERT-large, the paper's recipe to the number (Devlin et al. 2018).

  python -m bert_jax.train --config=configs/bert_large.py --workdir=W \\
    --config.corpus.source='texts/*.txt.gz'

Hardware: 64 TPU chips. The paper took 4 days on 64 chips of 2018.
Expected, as published: SST-2 94.9, MNLI 86.7 (test), SQuAD 1.1 F1 90.9 (dev).
Nobody has run this file to its end yet.

L 24, H 1024, A 16: 340 M parameters; everything else as BERT-base.
"""

from bert_jax.config import default_config


def get_config():
  config = default_config()
  config.model.hidden_size = 1024
  config.model.num_hidden_layers = 24
  config.model.num_attention_heads = 16
  config.model.intermediate_size = 4096
  return config
