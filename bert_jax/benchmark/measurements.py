"""Measures the step, its input and the peer, each in its own process."""

import copy
import datetime
import importlib.util
import os
import sys
import tempfile

from bert_jax.benchmark import ours as ours_lib
from bert_jax.config import active_phases, validate
from bert_jax.distributed.child_process import call_alone
from bert_jax.errors import DoesNotFitError, UserError

# A batch size is better than another from this gain in sequences/s on.
_MIN_GAIN = 1.02
# Name to (masked-LM head, whether torch.compile is used), see `torch_peer.py`.
PEERS = {
  "transformers": ("full", False),
  "transformers, gathered head": ("gathered", False),
  "transformers, compiled": ("full", True),
  "transformers, gathered head, compiled": ("gathered", True),
}


def bench(config, phases, seconds, sweep=False, peers=()):
  """Measures the device, the step, the step with its input, and the peers.

  Args:
    config: validated settings.
    phases: names of the phases.
    seconds: float, how long to measure each figure.
    sweep: whether to look for the best batch sizes.
    peers: names in `PEERS` to measure too.

  Yields:
    dicts of figures, JSON-able, the device's first.
  """
  device = alone(ours_lib.measure_device, config.model.dtype, seconds)
  device |= {"figure": "device", "date": datetime.date.today().isoformat()}
  yield device
  for name in phases:
    ours = _measure_step(ours_lib.measure_step, config, name, seconds, sweep)
    if ours is None:
      yield {"figure": "step", "program": "bert_jax", "phase": name} | _NO_FIT
      continue
    yield {"figure": "step", "program": "bert_jax"} | _with_mfu(ours, device)
    at_best = _with_batch_size(config, name, ours["batch_size"])
    measured = alone(ours_lib.measure_training, at_best, name, seconds)
    yield {"figure": "training"} | _with_rates(at_best, name, measured)
    yield from _measure_peers(config, name, seconds, sweep, peers, ours)


def bench_input(config, phases, seconds):
  """Measures the input pipeline alone, at the config's batch sizes.

  Args:
    config: validated settings.
    phases: names of the phases.
    seconds: float, how long to measure each figure.

  Yields:
    dicts of figures, JSON-able.
  """
  for name in phases:
    measured = alone(ours_lib.measure_input, config, name, seconds)
    yield {"figure": "input"} | _with_rates(config, name, measured)


_NO_FIT = {"error": "does not fit"}


def _measure_peers(config, name, seconds, sweep, peers, ours):
  """Yields the step of each peer, and the ratio of ours to it."""
  for program in peers:
    row = {"figure": "step", "program": program, "phase": name}
    # Imported here, since torch is optional.
    from bert_jax.benchmark import torch_peer

    measure = torch_peer.measure_step
    try:
      theirs = _measure_step(
        measure, config, name, seconds, sweep, *PEERS[program]
      )
    except Exception as e:  # torch.compile fails in many ways
      yield row | {"error": " ".join(str(e).split())[:200]}
      continue
    if theirs is None:
      yield row | _NO_FIT
      continue
    yield row | theirs
    yield {
      "figure": "ratio",
      "phase": name,
      "over": program,
      "ratio": ours["sequences_per_second"] / theirs["sequences_per_second"],
    }


def _measure_step(measure, config, name, seconds, sweep, *arguments):
  """Measures a step at the config's batch size, or searches the best one.

  Returns:
    dict of figures, or None where no batch fits.
  """

  def at(batch_size):
    resized = _with_batch_size(config, name, batch_size)
    try:
      validate(resized)
      row = alone(measure, resized, name, seconds, *arguments)
    except (DoesNotFitError, UserError) as e:
      _say(f"{name}, batches of {batch_size}: {e}")
      return None
    row = _with_rates(resized, name, row)
    if sweep:
      _say(f"{batch_size}: {row['sequences_per_second']:,.4g} sequences/s")
    return row

  first = config[name].batch_size
  if not sweep:
    return at(first)
  return find_best(at, first)


def find_best(measure, first):
  """Searches the batch size with the most sequences a second.

  Doubles the batch while that gains; if the first doubling does not, halves it
  while that gains.

  Args:
    measure: function of the batch size to a dict with `sequences_per_second`,
      or None where it does not fit into memory.
    first: int, the batch size to begin with.

  Returns:
    the best of these dicts, or None if no batch fits.
  """
  sizes = (first >> halvings for halvings in range(first.bit_length()))
  fitting = next(filter(None, map(measure, sizes)), None)
  if fitting is None:
    return None
  best = fitting
  if fitting["batch_size"] == first:
    best = _climb(measure, fitting, 2)
  return _climb(measure, fitting, 1 / 2) if best is fitting else best


def _climb(measure, best, factor):
  """Multiplies the batch size by a factor while that gains sequences/s."""
  while size := int(best["batch_size"] * factor):
    found = measure(size)
    least = _MIN_GAIN * best["sequences_per_second"]
    if found is None or found["sequences_per_second"] < least:
      return best
    best = found
  return best


def _with_batch_size(config, name, batch_size):
  resized = copy.deepcopy(config)
  resized[name].batch_size = batch_size
  return resized


def _with_rates(config, name, row):
  """Adds sequences and tokens a second to a measured time."""
  phase = config[name]
  sequences_per_second = phase.batch_size / row["seconds"]
  return {
    "phase": name,
    "batch_size": phase.batch_size,
    "max_seq_length": phase.max_seq_length,
    "dtype": config.model.dtype,
    "sequences_per_second": sequences_per_second,
    "tokens_per_second": sequences_per_second * phase.max_seq_length,
  } | row


def _with_mfu(row, device):
  """Adds MFU: model FLOPs a second over the measured matmul peak."""
  peak = device["matmul_flops_per_second"] * device["num_devices"]
  return row | {"mfu": row["model_flops"] / row["seconds"] / peak}


def alone(function, *arguments):
  """Calls a function in a new process, see `child_process.call_alone`.

  Args:
    function: importable function.
    *arguments: its arguments.

  Returns:
    its result.

  Raises:
    DoesNotFitError: the process was killed, as happens for lack of memory.
  """
  try:
    return call_alone(function, *arguments)
  except ChildProcessError as e:
    raise DoesNotFitError(str(e)) from None


def describe(row):
  """Formats a row of figures as one line of text."""
  if "error" in row:
    return f"{row['phase']} {row['program']}: {row['error']}"
  if row["figure"] == "device":
    return (
      f"{row['num_devices']} x {row['device_kind']}: "
      f"{row['matmul_flops_per_second'] / 1e12:,.3g} TFLOP/s in a "
      f"{row['dtype']} matrix multiplication, "
      f"{row['copy_bytes_per_second'] / 1e9:,.3g} GB/s in a copy"
    )
  if row["figure"] == "ratio":
    return f"{row['phase']}: {row['ratio']:.2f} times {row['over']}"
  line = (
    f"{row['phase']} {row.get('program', row['figure'])}: "
    f"{row['batch_size']} x {row['max_seq_length']} {row['dtype']}, "
    f"{1e3 * row['seconds']:,.3g} ms, "
    f"{row['sequences_per_second']:,.4g} sequences/s"
  )
  if "mfu" in row:
    line += f", MFU {row['mfu']:.3f}"
  if "memory_bytes" in row:
    line += f", {row['memory_bytes'] / 1e9:.3g} GB"
  if "data_wait" in row:
    line += f", waits for data {row['data_wait']:.2%}"
  if "sequences_per_core_second" in row:
    line += f", {row['sequences_per_core_second']:,.0f} a core"
  return line


def _say(line):
  print(line, file=sys.stderr, flush=True)


def parse_phases(text, config):
  """Reads which phases to measure.

  Args:
    text: "phase1,phase2" or None for all that have steps.
    config: the run's settings.

  Returns:
    list of names.

  Raises:
    UserError: there is no such phase.
  """
  if not text:
    return active_phases(config)
  names = text.split(",")
  for name in names:
    if name not in active_phases(config):
      raise UserError(
        f"--phases has {name!r}; expected some of "
        f"{', '.join(active_phases(config))}, which have steps"
      )
  return names


def measure_all(config, phases, seconds, *, input_only, sweep, peer, compiled):
  """Measures everything that the command's flags ask for.

  Args:
    config: the run's settings.
    phases: as `parse_phases` takes it.
    seconds: float, how long to measure each figure.
    input_only: whether to measure the input pipeline alone.
    sweep: whether to look for the best batch sizes.
    peer: "transformers", or None.
    compiled: whether to measure the peer through torch.compile too.

  Yields:
    dicts of figures, JSON-able.

  Raises:
    UserError: settings are not as they must be, or the peer is not installed.
  """
  validate(config)
  if peer and not all(map(importlib.util.find_spec, ("torch", "transformers"))):
    raise UserError(
      "--peer=transformers needs torch and transformers; expected them "
      "installed (pip install torch transformers)"
    )
  phases = parse_phases(phases, config)
  peers = [
    program
    for program, (_, is_compiled) in PEERS.items()
    if peer and (compiled or not is_compiled)
  ]
  with tempfile.TemporaryDirectory() as programs:
    # The step is compiled once and measured twice, alone and with its input.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", programs)
    yield from bench_input(config, phases, seconds)
    if not input_only:
      yield from bench(config, phases, seconds, sweep, peers)
