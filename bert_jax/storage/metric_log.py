"""Where a run's numbers go: metrics.jsonl, TensorBoard, and the terminal."""

import functools
import json
import math
import os
import queue
import sys
import threading
import time
import zlib

from bert_jax.errors import UserError
from bert_jax.storage import paths

# Pause between two writes of the file to an object store.
PAUSE_SECONDS = 10
# Pause after a write that failed.
RETRY_SECONDS = 2
# How long the save of a checkpoint waits for the rows before it.
FLUSH_SECONDS = 10
# How long the end of a run waits for a storage that does not answer.
GIVE_UP_SECONDS = 60


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
    list of dicts with the keys `FIELDS`. A last line cut short by a kill is
    left out, as is the whole file where there is none; so is every other line
    that is no row, but that is told.
  """
  path = _path(workdir)
  rows = []
  for number, line in enumerate(_load_lines(path), start=1):
    row = _parse(line)
    if row is None:
      print(
        f"{path}, line {number} is no row of metrics: {line[:60]!r}",
        file=sys.stderr,
      )
    else:
      rows.append(row)
  return rows


def _path(workdir):
  return paths.as_path(workdir) / "metrics.jsonl"


def _load_lines(path):
  """Returns the lines of the file, bytes, without a last one cut short."""
  if not path.exists():
    return []
  if path.is_dir():
    raise UserError(f"{path} is a folder; expected a file (move it away)")
  lines = path.read_bytes().split(b"\n")
  # A complete line ends with a newline. A row without one is complete too.
  if _parse(lines[-1]) is None:
    del lines[-1]
  return [line for line in lines if line]


def _parse(line):
  """Returns the row that a line holds, or None."""
  try:
    row = json.loads(line)
    is_row = type(row["step"]) is int and isinstance(row["split"], str)
  except (ValueError, KeyError, TypeError, RecursionError):
    return None
  return row if is_row else None


def _sign(lines):
  """Returns {"lines": how many, "crc32": of all of them}."""
  crc = functools.reduce(lambda crc, line: zlib.crc32(line, crc), lines, 0)
  return {"lines": len(lines), "crc32": crc}


def tell_changes(workdir, signature):
  """Prints a line if rows were changed or lost since a checkpoint was saved.

  The rows are used all the same; the weights do not depend on them.

  Args:
    workdir: the run's folder.
    signature: `MetricWriter.signature` at that time, or None where none was
      kept.
  """
  path = _path(workdir)
  lines = _load_lines(path)
  if signature and _sign(lines[: signature["lines"]]) != signature:
    print(
      f"{path}: rows up to the checkpoint were changed or lost since it was "
      "saved; figures and curve are of what is there",
      file=sys.stderr,
    )


class MetricWriter:
  """Appends rows to metrics.jsonl and TensorBoard's event files.

  A thread does it, in batches. A storage that does not answer is asked again
  and again, and never stops the training.

  Attributes:
    signature: dict, the number and the checksum of all rows handed over, by
      which `tell_changes` knows them again.
  """

  def __init__(self, workdir, first_step, fields=FIELDS):
    """Continues the files of a workdir.

    Args:
      workdir: `epath.Path`, the run's folder.
      first_step: rows after this step are deleted, since the run repeats those
        steps and writes the rows again. A line that is no row stays.
      fields: the keys that every row has.
    """
    from tensorboardX import SummaryWriter

    self._fields = fields
    self._path = _path(workdir)
    self._lines = [
      line
      for line in _load_lines(self._path)
      if (_parse(line) or {"step": 0})["step"] <= first_step
    ]
    self._write_all()
    self.signature = _sign(self._lines)
    self._is_local = not paths.is_remote(workdir)
    self._events = (
      SummaryWriter(os.fspath(workdir / "tensorboard"), purge_step=first_step)
      if self._is_local
      else None
    )
    self._problem = None
    self._rows = queue.SimpleQueue()
    self._num_handed = self._num_written = 0
    self._written = threading.Condition()
    self._hurry = threading.Event()  # ends a pause between writes
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def _write_all(self):
    text = b"".join(line + b"\n" for line in self._lines)
    paths.write_file(self._path, text)

  def write(self, row):
    """Hands a row to the thread that writes; returns at once.

    Args:
      row: dict with some of the keys `fields`; what is missing or not finite
        becomes null. Other keys follow them.
    """
    row = dict.fromkeys(self._fields) | row
    row = {field: _json_number(value) for field, value in row.items()}
    line = json.dumps(row).encode()
    self.signature = {
      "lines": self.signature["lines"] + 1,
      "crc32": zlib.crc32(line, self.signature["crc32"]),
    }
    self._num_handed += 1
    self._rows.put(row)

  def flush(self):
    """Waits until all rows are written, or for `FLUSH_SECONDS`.

    To be called before a checkpoint is saved: a run that goes on from it does
    not make the rows before it again.
    """
    self._hurry.set()
    with self._written:
      self._written.wait_for(
        lambda: self._num_written == self._num_handed, FLUSH_SECONDS
      )

  def close(self):
    """Waits until all rows are written, or for `GIVE_UP_SECONDS`."""
    self._rows.put(None)
    self._hurry.set()
    self._thread.join(GIVE_UP_SECONDS)
    if self._thread.is_alive():
      print(f"{self._path} lacks the last rows: {self._problem}")

  def _run(self):
    """Writes rows as they come, all that came meanwhile at once."""
    waiting, is_closed = [], False
    while waiting or not is_closed:
      for row in self._take(is_blocking=not waiting):
        is_closed |= row is None
        waiting += [] if row is None else [row]
      waiting = self._try_to_write(waiting)
      if waiting:
        time.sleep(RETRY_SECONDS)
      elif not (self._is_local or is_closed):
        # An object store takes no more than one write of an object a second.
        self._hurry.wait(PAUSE_SECONDS)
        self._hurry.clear()
    if self._events:
      self._events.close()

  def _take(self, is_blocking):
    """Returns the rows that are there, or waits for one; None is the end."""
    rows = [self._rows.get()] if is_blocking else []
    while not self._rows.empty():
      rows.append(self._rows.get())
    return rows

  def _try_to_write(self, rows):
    """Writes rows; returns those that are still to be written."""
    if not rows:
      return []
    added = [json.dumps(row).encode() for row in rows]
    try:
      if self._is_local:
        self._append(added)
        self._lines += added
      else:
        self._lines += added
        self._write_all()  # an object store cannot append
    except Exception as e:  # storage clients raise what they like
      if not self._is_local:
        del self._lines[-len(added) :]
      self._tell(e)
      return rows
    self._problem = None
    for row in rows:
      self._add_scalars(row)
    with self._written:
      self._num_written += len(rows)
      self._written.notify_all()
    return []

  def _append(self, lines):
    """Appends lines; after a write that failed the file is as before."""
    with open(self._path, "ab") as f:
      size = f.tell()
      try:
        f.write(b"".join(line + b"\n" for line in lines))
        f.flush()
      except OSError:
        os.truncate(self._path, size)
        raise

  def _add_scalars(self, row):
    for field, value in row.items():
      if self._events and isinstance(value, float):
        self._events.add_scalar(f"{row['split']}/{field}", value, row["step"])

  def _tell(self, error):
    """Says once what keeps rows from being written."""
    problem = " ".join(str(error).split())[:200]
    if self._problem is None:
      print(f"{self._path} can't be written for now: {problem}", flush=True)
    self._problem = problem


def _json_number(value):
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
