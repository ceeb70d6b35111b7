"""Pretrains BERT through both phases; resumes whatever the workdir holds.

    python -m bert_jax.train --config=configs/bert_base.py --workdir=W

On a slice of several hosts every host runs this very command. On one machine
`--rehearse_hosts=4 --rehearse_devices=4` plays such a slice with processes.
Prepares the corpus first if that has not been done; `--init=MODEL` goes on
pretraining a model on the config's text.
"""

import sys

from absl import flags

from bert_jax import command
from bert_jax.distributed import rehearsal
from bert_jax.pretraining import initialization, session


def main(argv):
  """Runs the command."""
  del argv
  config, workdir = command.config_and_workdir()
  init = initialization.create_init(*command.init_flags())
  num_hosts = flags.FLAGS.rehearse_hosts
  num_devices = flags.FLAGS.rehearse_devices
  if (num_hosts or num_devices) and not rehearsal.is_child():
    sys.exit(rehearsal.rehearse(num_hosts or 1, num_devices or 4))
  sys.exit(session.train_on_all_hosts(config, workdir, init))


if __name__ == "__main__":
  command.define_config_flags()
  command.define_init_flags()
  flags.DEFINE_integer(
    "rehearse_hosts",
    None,
    "Start so many processes here, as a pod does (1 with --rehearse_devices).",
    1,
  )
  flags.DEFINE_integer(
    "rehearse_devices",
    None,
    "CPU devices of each of them (4 with --rehearse_hosts).",
    1,
  )
  command.run(main)
