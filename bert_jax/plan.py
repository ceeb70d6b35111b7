"""Tells what a run would take on a TPU slice that nobody holds.

    python -m bert_jax.plan --config=configs/bert_base.py --topology=v5e:4x4 \\
        --price_per_chip_hour=1.2

Compiles the step of each phase, the one that `train` runs, with the TPU's own
compiler (`pip install jax[tpu]`; a CPU is enough) and reads its estimates. Both
phases of BERT-base took over six minutes of processor time.

Several slices, `--topology=v5e:4x4,v6e-16` or all those of 16 chips,
`--topology=16`, make a table. `--search` also tries meshes, more passes where a
batch is large, remat where it does not fit, and prints the flags of what is
fastest and of what is cheapest.

How far to trust the time of a step: the compiler's cycles were held against
data sheets. Times the datasheet's time, by generation (libtpu 0.0.42.1):

                              v2    v3    v4   v5e   v5p   v6e  TPU7x
  4096 x 4096 x 4096         1.03  1.05  1.14  1.03  1.04  1.15  1.21
  16384 x 768 x 3072         1.02  1.03  1.20  1.22  1.08  2.56  1.40
  float32 + 1, in memory     1.12  1.07  1.30  1.24  1.39  1.24  1.32
  bfloat16 + 1, in memory    2.24  2.13  2.59  2.46  2.75  2.47  2.65

The first two are matrix products, the second as wide as BERT-base; the last
gives no credit for two bytes, which is why most real steps should come out
faster than their vector work says. Gathers, sorts and scatters carry no
estimate, nor does what a SparseCore does (v5p, v6e, TPU7x), and collectives
are modelled (see cost.py), with no contention and no start-up, over the
links of a chip at the slice's corner: only a whole torus has none. So the range
runs from 0.8 times what the links of a chip in the middle would make it, never
below the time that the matrix products alone take at the peak, to 1.4 times the
estimate. Nothing here was timed on a TPU. Reading text, evaluation and
checkpoints come on top.
"""

import json

from absl import flags

from bert_jax import command
from bert_jax.config import validate
from bert_jax.errors import UserError
from bert_jax.planning import memory_advice, search, step_plan
from bert_jax.planning import report as report_lib
from bert_jax.planning import slices as slices_lib


def plan(config, planned, price_per_chip_hour=None, hlo_dir=None):
  """Plans a run on one slice.

  Args:
    config: the run's settings.
    planned: `slices.Slice`.
    price_per_chip_hour: in any currency, or None.
    hlo_dir: folder for `phase1.txt` and `phase2.txt`, or None.

  Returns:
    dict of what `--json` prints; seconds, bytes and FLOPs.

  Raises:
    UserError: the settings are not as they must be, or the compiler crashed.
  """
  candidate = search.Candidate(config, planned)
  (phases,) = search.plan_candidates([candidate], hlo_dir)
  for report in phases.values():
    if isinstance(report, UserError):
      raise report
  return describe(candidate, phases, price_per_chip_hour)


def describe(candidate, phases, price_per_chip_hour):
  """Joins what is known of a candidate.

  Args:
    candidate: `search.Candidate`.
    phases: dict of phase name to what `step_plan.plan_phase` returned or to a
      `UserError`.
    price_per_chip_hour: in any currency, or None.

  Returns:
    dict of what `--json` prints; `error` where there are no times.
  """
  head = {
    "topology": str(candidate.slice),
    "name": candidate.slice.rented_name,
    "chips": candidate.slice.num_chips,
    "devices": candidate.slice.num_devices,
    "mesh": candidate.mesh,
    "overrides": candidate.overrides,
  }
  errors = [str(p) for p in phases.values() if isinstance(p, UserError)]
  if errors:
    return head | {"fits": False, "error": errors[0]}
  for name, report in phases.items():
    if not report["fits"]:
      report["would_fit"] = memory_advice.suggest_fitting(
        candidate.config, candidate.slice, name, report
      )
  first = next(iter(phases.values()))
  return (
    head
    | {"parameters": first["parameters"], "phases": phases}
    | search.total(phases, candidate.slice.num_chips, price_per_chip_hour)
  )


def parse_prices(text, slices):
  """Reads prices of a chip-hour.

  Args:
    text: "1.2", or "v5e=1.2,v6e=2.7", or None.
    slices: list of `slices.Slice` that need one.

  Returns:
    dict of generation name to float; empty without a price.

  Raises:
    UserError: something is no number, or a generation has no price.
  """
  if not text:
    return {}
  needed = {planned.generation.name for planned in slices}
  pairs = [item.rpartition("=") for item in text.split(",")]
  try:
    given = {name.strip(): float(price) for name, _, price in pairs}
  except ValueError:
    given = {}
  prices = {name: given.get(name, given.get("")) for name in needed}
  known = {generation.name for generation in slices_lib.GENERATIONS} | {""}
  good = (price is not None and price >= 0 for price in prices.values())
  if not all(good) or not given.keys() <= known:
    expected = ",".join(f"{name}=PRICE" for name in sorted(needed))
    raise UserError(
      f"--price_per_chip_hour is {text!r}; expected a number such as 1.2, or "
      f"{expected}"
    )
  return prices


def main(argv):
  """Runs the command."""
  del argv
  options = flags.FLAGS
  config = command.config()
  slices = slices_lib.find_slices(options.topology or "")
  prices = parse_prices(options.price_per_chip_hour, slices)
  validate(config)
  if options.search or len(slices) > 1:
    report = _compare(config, slices, prices)
    text = report_lib.format_comparison
  else:
    price = prices.get(slices[0].generation.name)
    report = plan(config, slices[0], price, options.hlo)
    text = report_lib.format_plan
    if options.shardings:
      run = step_plan.create_run(config, slices[0])
      report["shardings"] = step_plan.sharding_table(run)
  print(json.dumps(report) if options.json else text(report))


def _compare(config, slices, prices):
  """Plans several candidates; returns what `--json` prints."""
  options = flags.FLAGS
  if options.shardings:
    raise UserError("--shardings is set; expected one --topology, no --search")
  num_left_out = 0
  if options.search:
    found, num_left_out = search.search(
      config, slices, options.max_candidates, options.hlo
    )
  else:
    candidates = [search.Candidate(config, planned) for planned in slices]
    results = search.plan_candidates(candidates, options.hlo)
    found = list(zip(candidates, results, strict=True))
  reports = [
    describe(candidate, phases, prices.get(candidate.slice.generation.name))
    for candidate, phases in found
  ]
  return {"candidates": reports, "left_out": num_left_out}


if __name__ == "__main__":
  command.define_config_flag()
  flags.DEFINE_string(
    "topology",
    None,
    "Slice, such as v5e:4x4, v5litepod-16, v4-32 or v6e-16; several with "
    "commas; a number for all slices of so many chips.",
  )
  flags.DEFINE_string(
    "price_per_chip_hour", None, "Price of one chip; or v5e=1.2,v6e=2.7."
  )
  flags.DEFINE_bool("search", False, "Try meshes, passes and remat.")
  flags.DEFINE_integer(
    "max_candidates",
    12,
    "How many --search compiles in its first round.",
    lower_bound=1,
  )
  flags.DEFINE_bool("json", False, "Print JSON instead of text.")
  flags.DEFINE_string("hlo", None, "Folder to keep the compiled programs in.")
  flags.DEFINE_bool("shardings", False, "Also list how parameters are split.")
  command.run(main)
