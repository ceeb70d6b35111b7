"""BERT-base, the paper's recipe to the number (Devlin et al. 2018).

  python -m bert_jax.train --config=configs/bert_base.py --workdir=W \\
    --config.corpus.source='texts/*.txt.gz'

Hardware: 16 TPU chips. The paper took 4 days on 16 chips of 2018.
Expected, as published for 3.3 billion words: held-out masked-LM loss about 1.4
(perplexity 4), NSP accuracy 0.97; SST-2 92 to 93, MNLI 84, SQuAD 1.1 F1 88.4.
Nobody has run this file to its end yet.

L 12, H 768, A 12: 110 M parameters. 900,000 steps of 256 x 128 tokens, then
100,000 of 256 x 512: 42.6 billion tokens seen, some ten passes over the paper's
corpus. Every number is a default of `bert_jax/config.py`.
"""

from bert_jax.config import default_config


def get_config():
  return default_config()
