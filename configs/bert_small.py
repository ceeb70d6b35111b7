"""BERT-small, one of Google's miniatures (Turc et al. 2019, arXiv 1908.08962).

  python -m bert_jax.train --config=configs/bert_small.py --workdir=W \\
    --config.corpus.source='texts/*.txt.gz'

Hardware: one accelerator or a few. On 4 chips of v5e a step takes 8.6 ms at
length 128, 38.3 at 512, and the run 3.2 hours (2.6 to 4.5) by the compiler's
estimate: `python -m bert_jax.plan --config=configs/bert_small.py
--topology=v5litepod-4`, 26 November 2026.
Expected, as published for the paper's corpus (GLUE test):
SST-2 89.7, MRPC F1 83.4, STS-B Pearson 78.8, MNLI 77.6.
Nobody has run this file to its end yet.

L 4, H 512, A 8: 28.8 M parameters; everything else as BERT-base.
"""

from bert_jax.config import default_config


def get_config():
  config = default_config()
  config.model.hidden_size = 512
  config.model.num_hidden_layers = 4
  config.model.num_attention_heads = 8
  config.model.intermediate_size = 2048
  return config
