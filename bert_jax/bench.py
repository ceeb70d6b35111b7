"""Measures the real step and the input pipeline on the devices at hand.

    python -m bert_jax.bench --config=configs/bert_base.py --phases=phase1 \\
      --sweep --peer=transformers

For each phase: the input pipeline alone (`--input_only` stops there), the step
that `train` runs, and both together; before the steps the device's own peak, a
large matrix product and a large copy. The text is made up; TensorFlow is used
where it is installed. Standard output gets one JSON line a figure, standard
error the same for people.

`--sweep` doubles and halves the batch while a step gains sequences a second by
it. `--peer=transformers` measures torch beside it in the same session (`pip
install torch transformers`): transformers' BertForPreTraining with its own head
and with the head at the masked positions, eager and compiled, each at its own
best batch with `--sweep`; then how many times faster ours is.

A figure is a median; `quartiles` says how steady it was. Each is measured in a
process of its own, compilation and two rounds apart. `--nocompiled` leaves out
torch.compile, which takes minutes on a CPU.
"""

import json
import sys

from absl import flags

from bert_jax import command
from bert_jax.benchmark import measurements


def main(argv):
  """Runs the command."""
  del argv
  args = flags.FLAGS
  rows = measurements.measure_all(
    command.config(),
    args.phases,
    args.seconds,
    input_only=args.input_only,
    sweep=args.sweep,
    peer=args.peer,
    compiled=args.compiled,
  )
  for row in rows:
    print(json.dumps(row), flush=True)
    print(measurements.describe(row), file=sys.stderr, flush=True)


if __name__ == "__main__":
  command.define_config_flag()
  flags.DEFINE_string("phases", None, "Default: all that have steps.")
  flags.DEFINE_float("seconds", 10.0, "To measure each figure.", 0.0)
  flags.DEFINE_bool("input_only", False, "Measure no step.")
  flags.DEFINE_bool("sweep", False, "Find the best batch sizes.")
  flags.DEFINE_enum(
    "peer", None, ["transformers"], "What to measure in the same session."
  )
  flags.DEFINE_bool("compiled", True, "The peer through torch.compile too.")
  command.run(main)
