"""Says which settings would make a step fit that does not.

By arithmetic on shapes: a device holds its share of the state; whole weights
and gradients in the layers' dtype, split over fsdp and model; and the rest of
what the compiler asked for, which goes with the rows that it sees at a time.
With `model.remat` that rest is each layer's input, the logits, and what one
layer makes. `plan --search` compiles such settings and so finds out.
"""

import jax.numpy as jnp

from bert_jax.planning import slices

# The rows at a time may become so many times fewer.
_FACTORS = [2**i for i in range(1, 13)]


def suggest_fitting(config, planned, name, report):
  """Lists changes of one setting each that would make a step fit.

  Args:
    config: the run's settings.
    planned: `slices.Slice`.
    name: "phase1" or "phase2".
    report: what `step_plan.plan_phase` returned.

  Returns:
    list of (change, bytes a device needed then), such as
    ("optimizer.grad_accumulation=4", 9.1e9); the smallest change of each kind.
  """
  found = [
    _first_fitting(_smaller_batches(config, name, report), report),
    _first_fitting(_accumulations(config, report), report),
    _first_fitting(_computed_again(config, name, report), report),
    _first_fitting(_wider_fsdp(config, report), report),
    _first_fitting(_bigger_slices(config, planned, report), report),
  ]
  return [change for change in found if change] + _other_chips(planned, report)


def fitting_accumulation(config, report):
  """Returns the least `optimizer.grad_accumulation` that may fit, or None."""
  choices = _accumulations(config, report)
  found = _first_fitting(choices, report)
  return int(found[0].split("=")[1]) if found else None


def _first_fitting(choices, report):
  return next(
    (c for c in choices if c[1] <= report["hbm_bytes"]),
    None,
  )


def _parts(config, report):
  """Returns (state, whole weights, what goes with the rows) in bytes."""
  memory = dict(report["memory_bytes"])
  made = memory.pop("activations_and_temporaries")
  mesh = report["mesh"]
  size = jnp.dtype(config.model.dtype).itemsize
  # Weights and gradients.
  whole = 2 * size * report["parameters"] / (mesh["fsdp"] * mesh["model"])
  whole = min(whole, made)
  return sum(memory.values()), whole, made - whole


def _rows_at_a_time(report):
  mesh = report["mesh"]
  shards = mesh["data"] * mesh["fsdp"]
  return report["batch_size"] // shards // report["grad_accumulation"]


def _smaller_batches(config, name, report):
  state, whole, rows = _parts(config, report)
  for factor in _FACTORS:
    if _rows_at_a_time(report) % factor == 0:
      batch_size = report["batch_size"] // factor
      yield f"{name}.batch_size={batch_size}", state + whole + rows / factor


def _accumulations(config, report):
  state, whole, rows = _parts(config, report)
  for factor in _FACTORS:
    if _rows_at_a_time(report) % factor == 0:
      passes = report["grad_accumulation"] * factor
      # The sum of the gradients beside those of one pass.
      needed = state + 1.5 * whole + rows / factor
      yield f"optimizer.grad_accumulation={passes}", needed


def _computed_again(config, name, report):
  if config.model.remat:
    return
  state, whole, rows = _parts(config, report)
  num_rows = _rows_at_a_time(report)
  num_layers, width = config.model.num_hidden_layers, config.model.hidden_size
  size = num_rows * config[name].max_seq_length * width
  inputs = num_layers * size * jnp.dtype(config.model.dtype).itemsize
  size = num_rows * config[name].max_predictions * config.corpus.vocab_size
  logits = size * jnp.dtype("float32").itemsize
  inner = max(0, rows - inputs - logits) / num_layers
  yield "model.remat=True", state + whole + inputs + logits + inner


def _wider_fsdp(config, report):
  state, whole, rows = _parts(config, report)
  mesh = report["mesh"]
  for factor in _FACTORS:
    divides = config.model.hidden_size % (mesh["fsdp"] * factor) == 0
    if mesh["data"] % factor == 0 and divides:
      yield f"mesh.fsdp={mesh['fsdp'] * factor}", state + whole / factor + rows


def _bigger_slices(config, planned, report):
  state, whole, rows = _parts(config, report)
  for other in slices.known_slices():
    factor = other.num_chips / planned.num_chips
    same = other.generation is planned.generation and factor > 1
    if same and _rows_at_a_time(report) % factor == 0:
      needed = state / factor + whole + rows / factor
      yield f"--topology={other}", needed


def _other_chips(planned, report):
  """Lists slices of as many chips that have the memory."""
  needed = report["needed_bytes"]
  return [
    (f"--topology={other}", needed)
    for other in slices.known_slices()
    if other.num_devices == planned.num_devices
    and other.generation is not planned.generation
    and needed <= other.generation.hbm_bytes
  ]
