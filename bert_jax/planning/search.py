"""Searches meshes, micro-batches and remat for the fastest and cheapest plan.

Varies only settings that leave the training as it is: the mesh, the number of
micro-batches (`optimizer.grad_accumulation`), `model.remat` and the slice. More
micro-batches and remat save memory and are tried where a step does not fit.
More micro-batches are also tried where the activations of a large batch do not
fit VMEM, which makes a step slower.
"""

import copy
import dataclasses
import math
import re

from bert_jax.config import active_phases
from bert_jax.errors import UserError
from bert_jax.planning import memory_advice, step_plan
from bert_jax.planning.compiler_process import run_jobs
from bert_jax.pretraining import run as run_lib

# Rounds of compilation; a round's candidates follow from the round before.
_NUM_ROUNDS = 3
# Tokens of a device's micro-batch from which more micro-batches may be faster:
# 4,096 x 128 on 16 chips of v5e takes 146 ms in one micro-batch and 137 ms in
# four, of 2**13 tokens a device (the compiler's estimate).
_MANY_TOKENS = 2**13


def plan_candidates(candidates, hlo_dir=None):
  """Plans every phase of several candidates.

  Args:
    candidates: list of `Candidate`.
    hlo_dir: see `step_plan.plan_phase`; with several candidates, each has a
      folder in it.

  Returns:
    list of dicts of phase name to what `step_plan.plan_phase` returned, or to
    a `UserError`; one for each candidate.
  """
  jobs, refused = {}, {}
  for candidate in candidates:
    folder = hlo_dir and f"{hlo_dir}/{candidate.folder}"
    try:
      run_lib.check_mesh(candidate.config, candidate.slice.num_devices)
    except UserError as e:  # before any process starts
      refused[str(candidate)] = e
      continue
    for name in active_phases(candidate.config):
      arguments = (
        candidate.config,
        candidate.slice,
        name,
        folder if len(candidates) > 1 else hlo_dir,
      )
      jobs[f"{name} on {candidate}"] = arguments
  results = run_jobs(step_plan.plan_phase, jobs, "plan") if jobs else {}
  return [
    {
      name: refused.get(str(candidate)) or results[f"{name} on {candidate}"]
      for name in active_phases(candidate.config)
    }
    for candidate in candidates
  ]


def search(config, slices, max_candidates, hlo_dir=None):
  """Searches for settings that fit and are fast.

  Args:
    config: the run's settings, validated.
    slices: list of `slices.Slice`.
    max_candidates: most candidates to compile in the first round; the next
      rounds vary their micro-batches and remat.
    hlo_dir: see `plan_candidates`.

  Returns:
    (list of (`Candidate`, phases as by `plan_candidates`), number of
    candidates left out).

  Raises:
    UserError: the batches divide over no mesh.
  """
  candidates = [
    candidate
    for planned in slices
    for candidate in list_candidates(config, planned)
  ]
  if not candidates:
    sizes = [config[name].batch_size for name in active_phases(config)]
    raise UserError(
      f"batches of {sizes} sequences divide over no mesh of "
      f"{', '.join(map(str, slices))}; expected a phase's batch_size that is a "
      "multiple of the devices, or fewer chips"
    )
  # Of all slices, meshes that split the model least come first.
  candidates.sort(key=lambda c: c.plainness)
  found, trying = [], candidates[:max_candidates]
  for _ in range(_NUM_ROUNDS):
    if not trying:
      break
    results = plan_candidates(trying, hlo_dir)
    pairs = list(zip(trying, results, strict=True))
    found += pairs
    # By name, which removes duplicates.
    trying = {str(c): c for pair in pairs for c in _to_try_next(*pair)}
    trying = list(trying.values())
  return found, max(0, len(candidates) - max_candidates)


def list_candidates(config, planned):
  """Lists the meshes of a slice that the model and the batches divide by.

  Args:
    config: the run's settings, validated.
    planned: `slices.Slice`.

  Returns:
    list of `Candidate` with one micro-batch each.
  """
  n = planned.num_devices
  powers = [2**i for i in range(n.bit_length()) if n % 2**i == 0]
  found = []
  for fsdp in powers:
    for model in powers:
      if n % (fsdp * model) == 0 and _divides(config, n, fsdp, model):
        mesh = {"data": n // fsdp // model, "fsdp": fsdp, "model": model}
        changes = {f"mesh.{axis}": size for axis, size in mesh.items()}
        changes["optimizer.grad_accumulation"] = 1
        found.append(_change(config, planned, changes))
  return found


def _divides(config, n, fsdp, model):
  width = config.model
  rows = [config[name].batch_size for name in active_phases(config)]
  split_by_model = (width.num_attention_heads, width.intermediate_size)
  # The padded table has a multiple of 128 rows.
  return (
    all(size % (n // model) == 0 for size in rows)
    and all(size % model == 0 for size in split_by_model)
    and 128 % model == 0
    and width.hidden_size % fsdp == 0
  )


def _change(config, planned, changes):
  config = copy.deepcopy(config)
  config.update_from_flattened_dict(changes)
  return Candidate(config, planned)


def _to_try_next(candidate, phases):
  """Lists candidates that may fit where this one did not, or be faster."""
  config = candidate.config
  reports = [r for r in phases.values() if not isinstance(r, UserError)]
  missing = [report for report in reports if not report["fits"]]
  if not missing:
    plain = config.optimizer.grad_accumulation == 1 and not config.model.remat
    number = _num_micro_batches_of_few_tokens(candidate)
    if not plain or number == 1 or len(reports) < len(phases):
      return []
    change = {"optimizer.grad_accumulation": number}
    return [_change(config, candidate.slice, change)]
  changes = []
  numbers = [
    memory_advice.smallest_accumulation(config, report) for report in missing
  ]
  if None not in numbers:
    changes.append({"optimizer.grad_accumulation": max(numbers)})
  if not config.model.remat:
    changes.append({"model.remat": True})
  return [_change(config, candidate.slice, change) for change in changes]


def _num_micro_batches_of_few_tokens(candidate):
  """Returns how many micro-batches keep every phase near `_MANY_TOKENS`."""
  mesh, numbers = candidate.mesh, []
  for name in active_phases(candidate.config):
    phase = candidate.config[name]
    rows = phase.batch_size // (mesh["data"] * mesh["fsdp"])
    choices = [2**i for i in range(rows.bit_length()) if rows % 2**i == 0]
    few = [
      n for n in choices if rows // n * phase.max_seq_length >= _MANY_TOKENS
    ]
    numbers.append(max(few, default=1))
  return min(numbers)


def total(phases, num_chips, price_per_chip_hour):
  """Sums hours, chip-hours and, with a price, money over the phases.

  Args:
    phases: dict of phase name to what `step_plan.plan_phase` returned.
    num_chips: of the slice.
    price_per_chip_hour: in any currency, or None.

  Returns:
    dict of `fits` and, if so, `hours`, `chip_hours`, `hours_range`, `money`,
    `money_range`.
  """
  phases = phases.values()
  if not all(phase["fits"] for phase in phases):
    return {"fits": False}

  def hours(seconds_of):
    return sum(p["num_steps"] * seconds_of(p) for p in phases) / 3600

  result = {
    "fits": True,
    "hours": hours(lambda p: p["step_seconds"]),
    "hours_range": [
      hours(lambda p, i=i: p["step_seconds_range"][i]) for i in (0, 1)
    ],
  }
  result["chip_hours"] = num_chips * result["hours"]
  if price_per_chip_hour is not None:
    chip_price = num_chips * price_per_chip_hour
    result["money"] = chip_price * result["hours"]
    result["money_range"] = [chip_price * h for h in result["hours_range"]]
  return result


@dataclasses.dataclass(frozen=True)
class Candidate:
  """Settings of a run and the slice to plan it for.

  Attributes:
    config: the run's settings.
    slice: `slices.Slice`.
  """

  config: object
  slice: object

  def __str__(self):
    mesh = self.mesh
    sizes = "x".join(map(str, mesh.values()))
    number = self.config.optimizer.grad_accumulation
    more = f" in {number} micro-batches" if number > 1 else ""
    more += ", remat" if self.config.model.remat else ""
    return f"{self.slice}, mesh {sizes}{more}"

  @property
  def mesh(self):
    """Dict of mesh axis to devices; -1 in the settings is resolved."""
    mesh = dict(self.config.mesh)
    fixed = math.prod(size for size in mesh.values() if size != -1)
    left = self.slice.num_devices // fixed
    return {k: left if size == -1 else size for k, size in mesh.items()}

  @property
  def folder(self):
    """Name of the folder for its compiled programs."""
    return re.sub(r"\W+", "_", str(self))

  @property
  def plainness(self):
    """Sort key: meshes that split less of the model come first."""
    mesh = self.config.mesh
    return mesh.fsdp * mesh.model, mesh.model

  @property
  def overrides(self):
    """Command-line flags that choose these settings."""
    changes = {f"mesh.{k}": v for k, v in self.mesh.items()}
    changes["optimizer.grad_accumulation"] = (
      self.config.optimizer.grad_accumulation
    )
    changes["model.remat"] = self.config.model.remat
    return " ".join(f"--config.{k}={v}" for k, v in changes.items())
