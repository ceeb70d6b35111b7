"""Measures the real step and the input pipeline on the devices at hand.

    python -m bert_jax.bench --config=configs/bert_base.py --phases=phase1 \\
      --sweep --peer=transformers

For each phase it measures the input pipeline alone (`--input_only` stops
there), the step that `train` runs, and both together; and before the steps the
device's peak, by a large matrix multiplication and a large copy. The text is
random tokens; TensorFlow is used where it is installed. Each figure is a JSON
line on standard output and a line of text on standard error.

`--sweep` doubles or halves the batch while that gains sequences a second.
`--peer=transformers` measures torch in the same session (`pip install torch
transformers`): transformers' BertForPreTraining with its own head and with the
head at the masked positions only, eager and through torch.compile, each at its
own best batch with `--sweep`; then the ratio of our sequences a second to each.

A figure is the median of several readings after a warm-up; `quartiles` shows
their spread. Each is measured in its own process. `--nocompiled` leaves out
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
    "peer", None, ["transformers"], "Also measured, in the same session."
  )
  flags.DEFINE_bool("compiled", True, "Measure torch.compile too.")
  command.run(main)
