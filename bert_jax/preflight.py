"""Tries a workdir before a run needs it; changes nothing in it.

    python -m bert_jax.preflight --workdir=gs://bucket/run

Writes, lists and deletes files there, saves two tiny checkpoints with orbax
and restores the newest. Runs on the CPU, so that it may be called on one host
of a slice. A bucket needs the roles roles/storage.objectAdmin and
roles/storage.legacyBucketReader; a missing permission is named.
"""

import jax

from bert_jax import command
from bert_jax.storage import paths, trial


def main(argv):
  """Runs the command."""
  del argv
  jax.config.update("jax_platforms", "cpu")
  workdir = paths.absolute(command.workdir())
  trial.check_storage(workdir)
  print(f"preflight: {workdir} can hold a run")


if __name__ == "__main__":
  command.define_workdir_flag()
  command.run(main)
