"""Held-out metrics of a checkpoint, as JSON on standard output.

    python -m bert_jax.evaluate --workdir=W [--step=N|best]

The examples and their masks are fixed once for a corpus and a length, so the
figures of different checkpoints and runs compare. Standard error says what they
mean beside guessing. Damage of the weights is noticed; that of the optimizer's
state is by bert_jax.train only.
"""

import json
import sys

from bert_jax import command
from bert_jax.pretraining import evaluation


def main(argv):
  """Runs the command."""
  del argv
  rows = []
  for row in evaluation.evaluate(command.workdir(), command.checkpoint_step()):
    print(json.dumps(row), flush=True)
    rows.append(row)
  for line in evaluation.explain(command.workdir(), rows):
    print(line, file=sys.stderr)


if __name__ == "__main__":
  command.define_checkpoint_flags()
  command.run(main)
