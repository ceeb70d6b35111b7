"""Plans a whole run on TPU slices, without the slices.

How far to trust the time of a step: the compiler's estimates, divided by the
time that data sheets allow, by generation (libtpu 0.0.42.1):

                              v2    v3    v4   v5e   v5p   v6e  TPU7x
  4096 x 4096 x 4096         1.03  1.05  1.14  1.03  1.04  1.15  1.21
  16384 x 768 x 3072         1.02  1.03  1.20  1.22  1.08  2.56  1.40
  float32 + 1, in memory     1.12  1.07  1.30  1.24  1.39  1.24  1.32
  bfloat16 + 1, in memory    2.24  2.13  2.59  2.46  2.75  2.47  2.65

The first two are matrix multiplications, the second as wide as BERT-base's.
bfloat16 vector work is estimated as if it were float32, so most real steps
should be faster than their vector work says. Nothing is known of sorts, of
gathers of single numbers, and of work on SparseCores (v5p, v6e, TPU7x); `plan`
prints these as unpriced. Gathers and scatters of rows count by the row, Pallas
kernels at the longer of two lower bounds (see hlo/cost.py). Collectives are
modelled without start-up time, over the links of a chip at the slice's corner
(see hlo/links.py); only a slice that is a full torus has no corners.

Hence the range that is printed: from 0.8 times the estimate with the links of a
chip in the middle, but never below the time of the matrix multiplications at
the chip's peak, to 1.4 times the estimate. Nothing here was timed on a TPU.
Reading text, evaluation and checkpoints come on top.
"""

from bert_jax.config import validate
from bert_jax.errors import UserError
from bert_jax.planning import memory_advice, step_plan
from bert_jax.planning import search as search_lib
from bert_jax.planning import slices as slices_lib


def plan(
  config, planned, price_per_chip_hour=None, hlo_dir=None, watts_per_chip=None
):
  """Plans a run on one slice.

  Args:
    config: the run's settings.
    planned: `slices.Slice`.
    price_per_chip_hour: in any currency, or None.
    hlo_dir: folder for `phase1.txt` and `phase2.txt`, or None.
    watts_per_chip: see `describe`.

  Returns:
    dict of what `--json` prints; seconds, bytes and FLOPs.

  Raises:
    UserError: the settings are not as they must be, or the compiler crashed.
  """
  candidate = search_lib.Candidate(config, planned)
  (phases,) = search_lib.plan_candidates([candidate], hlo_dir)
  for report in phases.values():
    if isinstance(report, UserError):
      raise report
  return describe(candidate, phases, price_per_chip_hour, watts_per_chip)


def describe(candidate, phases, price_per_chip_hour, watts_per_chip=None):
  """Combines the reports of a candidate's phases.

  Args:
    candidate: `search.Candidate`.
    phases: dict of phase name to what `step_plan.plan_phase` returned or to a
      `UserError`.
    price_per_chip_hour: in any currency, or None.
    watts_per_chip: power of a chip; None takes what is published of it.

  Returns:
    dict of what `--json` prints; with `error` if a phase has no report.
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
      report["would_fit"] = memory_advice.suggest_settings(
        candidate.config, candidate.slice, name, report
      )
  first = next(iter(phases.values()))
  report = head | {"parameters": first["parameters"], "phases": phases}
  report |= search_lib.total(
    phases, candidate.slice.num_chips, price_per_chip_hour
  )
  return report | _energy(report, candidate.slice.generation, watts_per_chip)


def _energy(report, generation, watts_per_chip):
  """Estimates the energy of a run: chips x hours x power of a chip."""
  if not report["fits"]:
    return {}
  watts = watts_per_chip or generation.watts
  return {
    "watts_per_chip": watts,
    "watts_source": (
      "--watts_per_chip" if watts_per_chip else generation.watts_source
    ),
    "energy_kwh": watts and report["chip_hours"] * watts / 1e3,
  }


def parse_prices(text, slices):
  """Reads prices of a chip-hour.

  Args:
    text: "1.2", or "v5e=1.2,v6e=2.7", or None.
    slices: list of `slices.Slice` to find prices for.

  Returns:
    dict of generation name to float; empty without a price.

  Raises:
    UserError: a price is not a number, or a generation has no price.
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


def plan_slices(
  config,
  topology,
  prices=None,
  *,
  search=False,
  max_candidates=12,
  hlo_dir=None,
  shardings=False,
  watts_per_chip=None,
):
  """Plans a run on one slice, or compares several.

  Args:
    config: the run's settings.
    topology: as `slices.find_slices` takes it.
    prices: as `parse_prices` takes it.
    search: whether to try meshes, gradient accumulation and remat.
    max_candidates: most candidates that a search compiles in its first round.
    hlo_dir: folder for the compiled programs, or None.
    shardings: whether to list how parameters are sharded.
    watts_per_chip: see `describe`.

  Returns:
    dict of what `--json` prints: the plan, or "candidates" and "left_out".

  Raises:
    UserError: the settings are not as they must be, or the compiler crashed.
  """
  slices = slices_lib.find_slices(topology)
  prices = parse_prices(prices, slices)
  validate(config)
  if search or len(slices) > 1:
    if shardings:
      raise UserError(
        "--shardings is set; expected one --topology, no --search"
      )
    rounds = max_candidates if search else None
    candidates, num_left_out = _plan_all(config, slices, rounds, hlo_dir)
    reports = [
      describe(c, phases, prices.get(c.slice.generation.name), watts_per_chip)
      for c, phases in candidates
    ]
    return {"candidates": reports, "left_out": num_left_out}
  price = prices.get(slices[0].generation.name)
  found = plan(config, slices[0], price, hlo_dir, watts_per_chip)
  if shardings:
    run = step_plan.create_run(config, slices[0])
    found["shardings"] = step_plan.sharding_table(run)
  return found


def _plan_all(config, slices, max_candidates, hlo_dir):
  """Plans every slice, or searches them if `max_candidates` is not None.

  Returns:
    see `search.search`.
  """
  if max_candidates:
    return search_lib.search(config, slices, max_candidates, hlo_dir)
  candidates = [search_lib.Candidate(config, planned) for planned in slices]
  results = search_lib.plan_candidates(candidates, hlo_dir)
  return list(zip(candidates, results, strict=True)), 0
