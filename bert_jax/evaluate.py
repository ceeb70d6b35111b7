"""Held-out metrics of a checkpoint, as JSON on standard output.

    python -m bert_jax.evaluate --workdir=W [--step=N|best]

The examples and their masks are fixed once for a corpus and a length, so the
figures of different checkpoints and runs compare; docs/evidence.md says what
each of them tells. A comparison with guessing goes to standard error. Damaged
weights are an error here, a damaged optimizer state only in bert_jax.train. On
a slice every host runs this command.
"""

from bert_jax import command
from bert_jax.distributed import rehearsal
from bert_jax.pretraining import evaluation


def main(argv):
  """Runs the command."""
  del argv
  workdir, step = command.workdir(), command.checkpoint_step()
  rehearsal.rehearse_if_asked()
  evaluation.evaluate_on_all_hosts(workdir, step)


if __name__ == "__main__":
  command.define_checkpoint_flags()
  rehearsal.define_flags()
  command.run(main)
