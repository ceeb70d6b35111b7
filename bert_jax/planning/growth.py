"""Measures how a step's estimated time and memory scale with its settings.

One setting is varied at a time: batch, length, layers or chips.
"""

import copy
import itertools
import math

import matplotlib.figure

from bert_jax.config import validate
from bert_jax.errors import UserError
from bert_jax.planning import slices as slices_lib
from bert_jax.planning import step_plan
from bert_jax.planning.compiler_process import run_jobs
from bert_jax.pretraining import run as run_lib

# Growth by more than this factor above or below linear is explained.
_TOLERANCE = 1.1

_BATCH_FACTORS = (0.25, 1, 4, 16)
_LENGTH_FACTORS = (0.5, 1, 2, 4)
_LAYER_FACTORS = (0.25, 0.5, 1, 2)
_CHIPS = (4, 16, 64, 256)


def create_sweeps(config, planned):
  """Lists the settings to compile.

  Args:
    config: the run's settings; phase 1 is varied.
    planned: `slices.Slice`.

  Returns:
    dict of the name of what varies to list of (its value x, config, slice).
  """
  phase, layers = config.phase1, config.model.num_hidden_layers
  longest = config.model.max_position_embeddings
  batches = [round(phase.batch_size * f) for f in _BATCH_FACTORS]
  lengths = [round(phase.max_seq_length * f) for f in _LENGTH_FACTORS]
  depths = {max(1, round(layers * f)): None for f in _LAYER_FACTORS}
  slices = [
    other
    for other in slices_lib.known_slices()
    if other.generation is planned.generation and other.num_chips in _CHIPS
  ]
  return {
    "batch": [(b, _with(config, batch_size=b), planned) for b in batches],
    "length": [
      (n, _with(config, **_length(config, n)), planned)
      for n in lengths
      if n <= longest
    ],
    "layers": [(n, _with(config, layers=n), planned) for n in depths],
    "chips": [(other.num_chips, _with(config), other) for other in slices],
  }


def _length(config, max_seq_length):
  predictions = math.ceil(config.masking.rate * max_seq_length)
  return {"max_seq_length": max_seq_length, "max_predictions": predictions}


def _with(config, layers=None, **phase):
  config = copy.deepcopy(config)
  config.phase1.update(phase)
  if layers:
    config.model.num_hidden_layers = layers
  return config


def measure(sweeps):
  """Compiles every point of the sweeps, equal ones once.

  Args:
    sweeps: see `create_sweeps`.

  Returns:
    dict of the name of what varies to list of (x, report); a report is what
    `step_plan.plan_phase` returned, or a `UserError`. Ascending in x.
  """
  jobs = {
    _job_name(*point): (point[1], point[2], "phase1")
    for points in sweeps.values()
    for point in points
  }
  done = run_jobs(step_plan.plan_phase, jobs, "growth")
  return {
    name: [
      (point[0], done[_job_name(*point)])
      for point in sorted(points, key=lambda point: point[0])
    ]
    for name, points in sweeps.items()
  }


def _job_name(x, config, planned):
  del x
  phase = config.phase1
  return (
    f"{phase.batch_size} x {phase.max_seq_length}, "
    f"{config.model.num_hidden_layers} layers on {planned}"
  )


def explain_growth(points, power):
  """Names the parts that make a quantity grow more or less than linearly.

  Args:
    points: list of (x, dict of part to amount), ascending in x.
    power: -1 where x divides the work, 1 where it multiplies it.

  Returns:
    list of str, one for each pair of neighbouring points between which growth
    differs from linear by more than a tenth.
  """
  lines = []
  for (x1, before), (x2, after) in itertools.pairwise(points):
    linear = (x2 / x1) ** power
    ratio = sum(after.values()) / sum(before.values())
    off = ratio / linear
    if 1 / _TOLERANCE <= off <= _TOLERANCE:
      continue
    sign = 1 if off > 1 else -1
    excess = {
      part: sign * (after.get(part, 0) - linear * before.get(part, 0))
      for part in before | after
    }
    part = max(excess, key=excess.get)
    share = excess[part] / sum(e for e in excess.values() if e > 0)
    own = after.get(part, 0) / before[part] if before.get(part) else math.inf
    lines.append(
      f"{x1:,} to {x2:,}: {ratio:.2f} times, linear is {linear:.2f}; "
      f"{part} ({own:.2f} times) makes {share:.0%} of the difference"
    )
  return lines


def format_growth(measured):
  """Formats the result of `measure` as Markdown tables and explanations."""
  lines = []
  for name, points in measured.items():
    lines += [
      "",
      f"| {name} | step ms | sequences/s | MFU | GiB a device | bound by |",
      "|---|---|---|---|---|---|",
    ]
    lines += [_format_row(x, report) for x, report in points]
    power = -1 if name == "chips" else 1
    timed = [(x, _time_parts(r)) for x, r in points if _fits(r)]
    held = [(x, _memory_parts(r)) for x, r in points if _fits(r)]
    lines.append("")
    lines += [f"* time, {line}" for line in explain_growth(timed, power)]
    lines += [f"* memory, {line}" for line in explain_growth(held, power)]
    if lines[-1] == "":
      lines.append("* linear all the way")
  return "\n".join(lines[1:])


def _format_row(x, report):
  if isinstance(report, UserError):
    return f"| {x:,} | {report} | | | | |"
  if not report["fits"]:
    needed = report["needed_bytes"] / 2**30
    return f"| {x:,} | does not fit | | | {needed:.2f} | memory |"
  return (
    f"| {x:,} | {1e3 * report['step_seconds']:.2f} | "
    f"{report['sequences_per_second']:,.0f} | {report['mfu']:.2f} | "
    f"{report['memory_bytes']['total'] / 2**30:.2f} | {report['bound_by']} |"
  )


def _fits(report):
  return not isinstance(report, UserError) and report["fits"]


def _time_parts(report):
  parts = report["work_part_seconds"]
  return parts | {
    "kernels": report["kernel_seconds"],
    "embedding rows": report["row_seconds"],
    "waiting for the links": report["exposed_collective_seconds"],
  }


def _memory_parts(report):
  return {k: v for k, v in report["memory_bytes"].items() if k != "total"}


def save_plot(measured, title, path):
  """Plots step time and memory against each varied setting.

  Args:
    measured: see `measure`.
    title: str.
    path: of the PNG file.
  """
  figure = matplotlib.figure.Figure(figsize=(13, 6), layout="constrained")
  figure.suptitle(title)
  axes = figure.subplots(2, len(measured), sharey="row", squeeze=False)
  for column, (name, points) in zip(axes.T, measured.items(), strict=True):
    points = [(x, report) for x, report in points if _fits(report)]
    power = -1 if name == "chips" else 1
    times = [(x, 1e3 * r["step_seconds"]) for x, r in points]
    sizes = [(x, r["memory_bytes"]["total"] / 2**30) for x, r in points]
    _draw(column[0], times, power)
    _draw(column[1], sizes, power)
    column[1].set_xlabel(name)
  axes[0, 0].set_ylabel("step, ms")
  axes[1, 0].set_ylabel("memory of a device, GiB")
  axes[0, 0].legend()
  figure.savefig(path, dpi=110)


def _draw(axis, points, power):
  """Plots points, and the linear growth through the one with the most work."""
  axis.set(xscale="log", yscale="log")
  if not points:
    return
  xs, ys = zip(*points, strict=True)
  axis.plot(xs, ys, "o-", label="by the compiler")
  x0, y0 = points[0] if power < 0 else points[-1]
  linear = [y0 * (x / x0) ** power for x in xs]
  axis.plot(xs, linear, ":", color="gray", label="linear")
  axis.set_xticks(xs, [f"{x:,}" for x in xs])
  axis.minorticks_off()
  axis.grid(alpha=0.3)


def measure_growth(config, topology, output=None):
  """Compiles, formats and plots all sweeps.

  Args:
    config: the run's settings; phase 1 is varied.
    topology: name of a slice.
    output: path of a PNG file for the plot, or None.

  Returns:
    tables and explanations, str.

  Raises:
    UserError: no such slice, or the settings are not as they must be.
  """
  planned = slices_lib.find_slice(topology)
  validate(config)
  run_lib.check_mesh(config, planned.num_devices)
  measured = measure(create_sweeps(config, planned))
  if output:
    model = config.model
    title = (
      f"A step of phase 1: {config.phase1.batch_size} x "
      f"{config.phase1.max_seq_length}, {model.num_hidden_layers} layers of "
      f"{model.hidden_size} on {planned}, one thing changed at a time"
    )
    save_plot(measured, title, output)
  return format_growth(measured)
