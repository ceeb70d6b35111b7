"""BERT-tiny, one of Google's miniatures (Turc et al. 2019, arXiv 1908.08962).

  python -m bert_jax.train --config=configs/bert_tiny.py --workdir=W \\
    --config.corpus.source='texts/*.txt.gz'

Hardware: one accelerator or a few. On 4 chips of v5e a step takes 2.9 ms at
length 128, 9.9 at 512, and the run 1.0 hours (0.8 to 1.4) by the compiler's
estimate: `python -m bert_jax.plan --config=configs/bert_tiny.py
--topology=v5litepod-4`, 26 November 2026.
Expected, as published for the paper's corpus (GLUE test):
SST-2 83.2, MRPC F1 81.1, STS-B Pearson 74.3, MNLI 70.2.
Nobody has run this file to its end yet.

L 2, H 128, A 2: 4.4 M parameters; everything else as BERT-base.
"""

from bert_jax.config import default_config


def get_config():
  config = default_config()
  config.model.hidden_size = 128
  config.model.num_hidden_layers = 2
  config.model.num_attention_heads = 2
  config.model.intermediate_size = 512
  return config
