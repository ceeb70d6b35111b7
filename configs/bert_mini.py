"""BERT-mini, one of Google's miniatures (Turc et al. 2019, arXiv 1908.08962).

  python -m bert_jax.train --config=configs/bert_mini.py --workdir=W \\
    --config.corpus.source='texts/*.txt.gz'

Hardware: one accelerator or a few. On 4 chips of v5e a step takes 5.2 ms at
length 128, 19.1 at 512, and the run 1.8 hours (1.5 to 2.6) by the compiler's
estimate: `python -m bert_jax.plan --config=configs/bert_mini.py
--topology=v5litepod-4`, 26 November 2026.
Expected, as published for the paper's corpus (GLUE test):
SST-2 85.9, MRPC F1 81.1, STS-B Pearson 75.4, MNLI 74.8.
Nobody has run this file to its end yet.

L 4, H 256, A 4: 11.2 M parameters; everything else as BERT-base.
"""

from bert_jax.config import default_config


def get_config():
  config = default_config()
  config.model.hidden_size = 256
  config.model.num_hidden_layers = 4
  config.model.num_attention_heads = 4
  config.model.intermediate_size = 1024
  return config
