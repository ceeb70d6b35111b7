"""Estimates time, memory, price and energy of a run, without the TPU slice.

    python -m bert_jax.plan --config=configs/bert_base.py --topology=v5e:4x4 \\
        --price_per_chip_hour=1.2

Compiles the step of each phase, the one that `train` runs, with the TPU's own
compiler (`pip install jax[tpu]`; a CPU is enough) and reads its estimates. Both
phases of BERT-base took over six minutes of processor time.

Several slices, `--topology=v5e:4x4,v6e-16`, or all slices of 16 chips,
`--topology=16`, are compared in a table. `--search` also tries meshes, gradient
accumulation where a batch is large, and remat where it does not fit, and prints
the flags of the fastest and of the cheapest. How far to trust the times: see
`bert_jax/planning/run_plan.py`.
"""

import json

from absl import flags

from bert_jax import command
from bert_jax.planning import report, run_plan


def main(argv):
  """Runs the command."""
  del argv
  args = flags.FLAGS
  planned = run_plan.plan_slices(
    command.config(),
    args.topology or "",
    args.price_per_chip_hour,
    search=args.search,
    max_candidates=args.max_candidates,
    hlo_dir=args.hlo,
    shardings=args.shardings,
    watts_per_chip=args.watts_per_chip,
  )
  print(json.dumps(planned) if args.json else report.format_any(planned))


if __name__ == "__main__":
  command.define_config_flag()
  flags.DEFINE_string(
    "topology",
    None,
    "Slice, such as v5e:4x4, v5litepod-16, v4-32 or v6e-16; several separated "
    "by commas; a number for all slices of so many chips.",
  )
  flags.DEFINE_string(
    "price_per_chip_hour", None, "Price of one chip; or v5e=1.2,v6e=2.7."
  )
  flags.DEFINE_float(
    "watts_per_chip",
    None,
    "Power of a chip, for the energy; by default what is published of it.",
    lower_bound=0.0,
  )
  flags.DEFINE_bool("search", False, "Try meshes, accumulation and remat.")
  flags.DEFINE_integer(
    "max_candidates",
    12,
    "How many --search compiles in its first round.",
    lower_bound=1,
  )
  flags.DEFINE_bool("json", False, "Print JSON instead of text.")
  flags.DEFINE_string("hlo", None, "Folder for the compiled programs' HLO.")
  flags.DEFINE_bool("shardings", False, "Also list each parameter's sharding.")
  command.run(main)
