"""Pretrains BERT through both phases; resumes whatever the workdir holds.

    python -m bert_jax.train --config=configs/bert_base.py --workdir=W

On a slice of several hosts every host runs this very command. On one machine
`--rehearse_hosts=4 --rehearse_devices=4` plays such a slice with processes.
Prepares the corpus first if that has not been done; `--init=MODEL` goes on
pretraining a model on the config's text.
"""

import sys

from bert_jax import command
from bert_jax.distributed import rehearsal
from bert_jax.pretraining import initialization, session


def main(argv):
  """Runs the command."""
  del argv
  config, workdir = command.config_and_workdir()
  init = initialization.create_init(*command.init_flags())
  rehearsal.rehearse_if_asked()
  sys.exit(session.train_on_all_hosts(config, workdir, init))


if __name__ == "__main__":
  command.define_config_flags()
  command.define_init_flags()
  rehearsal.define_flags()
  command.run(main)
