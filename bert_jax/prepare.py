"""Raw text to vocabulary and token shards, with a report on the corpus.

    python -m bert_jax.prepare --config=configs/bert_base.py --workdir=W \\
      --config.corpus.source='texts/*.txt.gz'

Killed at any moment and started again, it goes on with the chunk it was at and
ends in the same bytes.
"""

from bert_jax import command
from bert_jax.pretraining import initialization, session


def main(argv):
  """Runs the command."""
  del argv
  config, workdir = command.config_and_workdir()
  init = initialization.create_init(*command.init_flags())
  session.prepare(config, workdir, init)


if __name__ == "__main__":
  command.define_config_flags()
  command.define_init_flags()
  command.run(main)
