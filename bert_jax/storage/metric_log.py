"""Where a run's numbers go: metrics.jsonl, TensorBoard, and the terminal."""

import json
import math
import os

from bert_jax.storage import paths


def row_fields(names):
  """Returns the keys of a run's rows, in order.

  Args:
    names: the figures that are its own, beside those of every run.
  """
  return (
    "step",
    "split",
    "loss",
    *names,
    "learning_rate",
    "grad_norm",
    "sequences_per_second",
    "tokens_per_second",
    "mfu",
    "fill",
    "data_wait",
    "phase",
  )


FIELDS = row_fields(
  ("mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy", "nsp_base_rate")
)


def load_rows(workdir):
  """Reads the rows of metrics.jsonl.

  Args:
    workdir: the run's folder.

  Returns:
    list of dicts with the keys `FIELDS`; a row cut short by a kill is left
    out, as is the whole file where there is none.
  """
  path = paths.as_path(workdir) / "metrics.jsonl"
  rows = []
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return rows


def create_writer(workdir, first_step, is_first):
  """Continues the files of a workdir.

  Args:
    workdir: `epath.Path`, the run's folder.
    first_step: see `MetricWriter`.
    is_first: whether this is the process that writes; the rows of others go
      nowhere.

  Returns:
    `MetricWriter`, or what looks like one.
  """
  return MetricWriter(workdir, first_step) if is_first else NoWriter()


class NoWriter:
  """Takes rows and keeps none."""

  def write(self, row):
    """Forgets a row."""

  def close(self):
    """Does nothing."""


class MetricWriter:
  """Appends rows to metrics.jsonl and TensorBoard's event files."""

  def __init__(self, workdir, first_step, fields=FIELDS):
    """Continues the files of a workdir.

    Args:
      workdir: `epath.Path`, the run's folder.
      first_step: rows after this step are of a future that a kill undid, and
        go; they will be written again.
      fields: the keys of every row.
    """
    from tensorboardX import SummaryWriter

    self._fields = fields
    self._path = workdir / "metrics.jsonl"
    self._lines = [
      json.dumps(row) for row in load_rows(workdir) if row["step"] <= first_step
    ]
    self._write_all()
    self._is_local = not paths.is_remote(workdir)
    self._events = (
      SummaryWriter(os.fspath(workdir / "tensorboard"), purge_step=first_step)
      if self._is_local
      else None
    )

  def _write_all(self):
    text = "".join(line + "\n" for line in self._lines)
    paths.write_file(self._path, text)

  def write(self, row):
    """Writes one row.

    Args:
      row: dict with some of the keys `fields`; what is missing or not finite
        becomes null.
    """
    row = {field: _json_number(row.get(field)) for field in self._fields}
    self._lines.append(json.dumps(row))
    if self._is_local:
      paths.append_text(self._path, self._lines[-1] + "\n")
    else:
      self._write_all()  # an object store cannot append
    for field, value in row.items():
      if self._events and isinstance(value, float):
        self._events.add_scalar(f"{row['split']}/{field}", value, row["step"])

  def close(self):
    """Flushes the event files."""
    if self._events:
      self._events.close()


def _json_number(value):
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
