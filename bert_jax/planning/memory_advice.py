"""Suggests settings that make a step fit into memory, without compiling.

A device needs memory for three things: its shard of the state; gathered weights
and gradients in the layers' dtype, split over the axes fsdp and model; and the
rest of what the compiler asked for, taken as proportional to the sequences of a
micro-batch. With `model.remat` that rest shrinks to each layer's input, the
logits, and the activations of one layer. `plan --search` compiles such settings
and so gives exact figures.
"""

import jax.numpy as jnp

from bert_jax.planning import slices

# By these factors batches and micro-batches are made smaller, fsdp larger.
_FACTORS = [2**i for i in range(1, 13)]


def suggest_settings(config, planned, name, report):
  """Lists changes of one setting each that would make a step fit.

  Args:
    config: the run's settings.
    planned: `slices.Slice`.
    name: "phase1" or "phase2".
    report: what `step_plan.plan_phase` returned.

  Returns:
    list of (change, bytes that a device needs then), such as
    ("optimizer.grad_accumulation=4", 9.1e9); the smallest change of each kind.
  """
  found = [
    _first_that_fits(_smaller_batches(config, name, report), report),
    _first_that_fits(_accumulations(config, report), report),
    _first_that_fits(_with_remat(config, name, report), report),
    _first_that_fits(_wider_fsdp(config, report), report),
    _first_that_fits(_bigger_slices(config, planned, report), report),
  ]
  return [change for change in found if change] + _other_chips(planned, report)


def smallest_accumulation(config, report):
  """Returns the least `optimizer.grad_accumulation` that may fit, or None."""
  choices = _accumulations(config, report)
  found = _first_that_fits(choices, report)
  return int(found[0].split("=")[1]) if found else None


def _first_that_fits(choices, report):
  return next(
    (c for c in choices if c[1] <= report["hbm_bytes"]),
    None,
  )


def _parts(config, report):
  """Returns bytes of (state, gathered weights and gradients, activations)."""
  memory = dict(report["memory_bytes"])
  allocated = memory.pop("activations_and_temporaries")
  mesh = report["mesh"]
  size = jnp.dtype(config.model.dtype).itemsize
  # Both have as many entries as there are parameters.
  gathered = 2 * size * report["parameters"] / (mesh["fsdp"] * mesh["model"])
  gathered = min(gathered, allocated)
  return sum(memory.values()), gathered, allocated - gathered


def _micro_batch_rows(report):
  mesh = report["mesh"]
  shards = mesh["data"] * mesh["fsdp"]
  return report["batch_size"] // shards // report["grad_accumulation"]


def _smaller_batches(config, name, report):
  state, gathered, activations = _parts(config, report)
  for factor in _FACTORS:
    if _micro_batch_rows(report) % factor == 0:
      batch_size = report["batch_size"] // factor
      yield (
        f"{name}.batch_size={batch_size}",
        state + gathered + activations / factor,
      )


def _accumulations(config, report):
  state, gathered, activations = _parts(config, report)
  for factor in _FACTORS:
    if _micro_batch_rows(report) % factor == 0:
      num_micro_batches = report["grad_accumulation"] * factor
      # The sum of the gradients, beside those of one micro-batch.
      needed = state + 1.5 * gathered + activations / factor
      yield f"optimizer.grad_accumulation={num_micro_batches}", needed


def _with_remat(config, name, report):
  if config.model.remat:
    return
  state, gathered, activations = _parts(config, report)
  num_rows = _micro_batch_rows(report)
  num_layers, width = config.model.num_hidden_layers, config.model.hidden_size
  size = num_rows * config[name].max_seq_length * width
  inputs = num_layers * size * jnp.dtype(config.model.dtype).itemsize
  size = num_rows * config[name].max_predictions * config.corpus.vocab_size
  logits = size * jnp.dtype("float32").itemsize
  inner = max(0, activations - inputs - logits) / num_layers
  yield "model.remat=True", state + gathered + inputs + logits + inner


def _wider_fsdp(config, report):
  state, gathered, activations = _parts(config, report)
  mesh = report["mesh"]
  for factor in _FACTORS:
    divides = config.model.hidden_size % (mesh["fsdp"] * factor) == 0
    if mesh["data"] % factor == 0 and divides:
      yield (
        f"mesh.fsdp={mesh['fsdp'] * factor}",
        state + gathered / factor + activations,
      )


def _bigger_slices(config, planned, report):
  state, gathered, activations = _parts(config, report)
  for other in slices.known_slices():
    factor = other.num_chips / planned.num_chips
    same = other.generation is planned.generation and factor > 1
    if same and _micro_batch_rows(report) % factor == 0:
      needed = state / factor + gathered + activations / factor
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
