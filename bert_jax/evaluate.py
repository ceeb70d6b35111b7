"""Held-out metrics of a checkpoint, as JSON on standard output.

    python -m bert_jax.evaluate --workdir=W [--step=N|best]

The examples and their masks are fixed once for a corpus and a length, so the
figures of different checkpoints and runs compare. Damage of the weights is
noticed; that of the optimizer's state is by bert_jax.train only.
"""

import json

from bert_jax import command
from bert_jax.pretraining import evaluation


def main(argv):
  """Runs the command."""
  del argv
  rows = evaluation.evaluate(command.workdir(), command.checkpoint_step())
  for row in rows:
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
  command.define_checkpoint_flags()
  command.run(main)
