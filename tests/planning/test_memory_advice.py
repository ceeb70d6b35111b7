"""Claims about what would make a step fit."""

import pytest

from bert_jax.config import default_config
from bert_jax.planning import memory_advice, slices

GIB = 2**30


def report(made, state=1, rows=64, **changes):
  """A step of `rows` a device on 4 devices that allocates `made` GiB."""
  memory = {
    "parameters": state * GIB,
    "activations_and_temporaries": made * GIB,
  }
  return {
    "mesh": {"data": 4, "fsdp": 1, "model": 1},
    "parameters": 0,
    "batch_size": 4 * rows,
    "grad_accumulation": 1,
    "hbm_bytes": 15.75 * GIB,
    "memory_bytes": memory,
    "needed_bytes": sum(memory.values()),
  } | changes


def suggest(report):
  planned = slices.find_slice("v5e:2x2")
  found = memory_advice.suggest_settings(
    default_config(), planned, "phase1", report
  )
  return {change: num_bytes / GIB for change, num_bytes in found}


def test_the_smallest_change_of_each_kind_is_named():
  """100 GiB that go with the rows: an eighth of them, or 32 chips."""
  found = suggest(report(100))
  assert found["phase1.batch_size=32"] == pytest.approx(1 + 12.5)
  assert found["optimizer.grad_accumulation=8"] == pytest.approx(1 + 12.5)
  assert found["--topology=v5e:4x8"] == pytest.approx(1 / 8 + 12.5)
  assert not any("fsdp" in change for change in found)


def test_remat_stores_inputs_of_layers_logits_and_one_layer():
  """512 rows a device of 128 slots, 20 predictions, twelve layers of 768.

  Beside a GiB of state: 1.125 GiB of bfloat16 inputs, 1.144 of float32 logits,
  and a twelfth of the rest.
  """
  logits = 512 * 20 * 30_000 * 4 / GIB
  found = suggest(report(100, rows=512))
  assert found["model.remat=True"] == pytest.approx(
    1 + 1.125 + logits + (100 - 1.125 - logits) / 12
  )
  config = default_config()
  config.model.remat = True
  planned = slices.find_slice("v5e:2x2")
  again = memory_advice.suggest_settings(config, planned, "phase1", report(100))
  assert "model.remat=True" not in dict(again)


def test_rows_divide():
  """Two sequences a device cannot be split into eight micro-batches."""
  assert not any("accum" in change for change in suggest(report(100, rows=2)))


def test_gathered_weights_are_split_by_fsdp():
  """5 G parameters: 20 GB of bfloat16 weights and gradients a device."""
  found = suggest(report(20e9 / GIB + 1, state=1, parameters=5_000_000_000))
  assert next(iter(found)) == "mesh.fsdp=2"
  assert found["mesh.fsdp=2"] == pytest.approx(1 + 10e9 / GIB + 1)


def test_other_chips_with_the_memory_are_named():
  found = suggest(report(24))
  assert {"--topology=v4:2x2x1", "--topology=v6e:2x2"} <= found.keys()
  assert "--topology=v3:2x2" not in found


def test_accumulation_to_try_next():
  config = default_config()
  assert memory_advice.smallest_accumulation(config, report(100)) == 8
  assert (
    memory_advice.smallest_accumulation(config, report(100, state=16)) is None
  )
