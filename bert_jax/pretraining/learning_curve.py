"""The learning curve of a run, as a PNG and as text."""

import io
import itertools

import matplotlib.figure

from bert_jax.errors import UserError
from bert_jax.storage import metric_log, paths

_WIDTH, _HEIGHT = 64, 12  # of the text, in characters


def plot_curve(rows):
  """Draws masked-LM loss and NSP accuracy against the step.

  Args:
    rows: list of dicts with the keys `metric_log.FIELDS`.

  Returns:
    bytes of a PNG.
  """
  figure = matplotlib.figure.Figure(figsize=(8, 3.2), layout="constrained")
  panels = (
    ("mlm_loss", "masked-LM loss (nats)"),
    ("nsp_accuracy", "next sentence accuracy"),
  )
  for axes, (field, label) in zip(figure.subplots(1, 2), panels, strict=True):
    for split, style in (("train", "-"), ("eval", "o-")):
      steps, values = _series(rows, split, field)
      faint = 0.4 if split == "train" else 1.0
      name = "training" if split == "train" else "held out"
      axes.plot(steps, values, style, markersize=4, alpha=faint, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    for step in _phase_switches(rows):
      axes.axvline(step, color="gray", linestyle=":", label="phase 2")
    axes.legend()
  file = io.BytesIO()
  figure.savefig(file, format="png", dpi=120)
  return file.getvalue()


def text_curve(rows, field="mlm_loss"):
  """Draws one field against the step with characters.

  Args:
    rows: list of dicts with the keys `metric_log.FIELDS`.
    field: a numeric key of `metric_log.FIELDS`.

  Returns:
    str of several lines: `.` training, `#` held out.
  """
  points = [
    (step, value, mark)
    for split, mark in (("train", "."), ("eval", "#"))
    for step, value in zip(*_series(rows, split, field), strict=True)
  ]
  low = min(value for _, value, _ in points)
  high = max(value for _, value, _ in points)
  last = max(step for step, _, _ in points)
  canvas = [[" "] * _WIDTH for _ in range(_HEIGHT)]
  for step, value, mark in points:
    column = round(step / last * (_WIDTH - 1))
    row = round((high - value) / max(high - low, 1e-9) * (_HEIGHT - 1))
    canvas[row][column] = mark
  labels = [f"{high:8.2f} "] + [" " * 9] * (_HEIGHT - 2) + [f"{low:8.2f} "]
  lines = [a + "|" + "".join(b) for a, b in zip(labels, canvas, strict=True)]
  lines.append(" " * 9 + "+" + "-" * _WIDTH)
  lines.append(
    " " * 10 + f"{field}, step 1 to {last:,} (. training, # held out)"
  )
  return "\n".join(lines)


def _series(rows, split, field):
  """Returns (steps, values) of one split, of the rows that have the field."""
  kept = [r for r in rows if r["split"] == split and r.get(field) is not None]
  return [r["step"] for r in kept], [r[field] for r in kept]


def _phase_switches(rows):
  """Returns the last step of each phase but the last."""
  pairs = itertools.pairwise(rows)
  return [a["step"] for a, b in pairs if a.get("phase") != b.get("phase")]


def draw(workdir):
  """Draws the curve of a run to <workdir>/curve.png.

  Args:
    workdir: a run's folder, str or path.

  Returns:
    the same curve as text, str.

  Raises:
    UserError: the run has no figures.
  """
  workdir = paths.as_path(workdir)
  rows = metric_log.load_rows(workdir)
  if not rows:
    raise UserError(f"{workdir} has no rows in metrics.jsonl; expected a run")
  paths.write_file(workdir / "curve.png", plot_curve(rows))
  return text_curve(rows)
