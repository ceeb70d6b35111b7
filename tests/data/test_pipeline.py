"""The pipeline: the same batches in order, with and without TensorFlow."""

import os
import pathlib
import pkgutil
import subprocess
import sys

import numpy as np
import pytest

from bert_jax.data import pipeline
from bert_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]


class _Examples:
  """Stands for `Examples`: rows that tell which example they are."""

  def batch(self, indices):
    return {
      "input_ids": (indices[:, None] * np.arange(7) % 65_536).astype(np.uint16),
      "length": indices.astype(np.int32),
    }


@pytest.fixture(name="with_tensorflow", params=[True, False])
def _with_tensorflow(request, monkeypatch):
  if not request.param:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
  return request.param


def _assert_equal(batches, expected):
  assert len(batches) == len(expected)
  for batch, other in zip(batches, expected, strict=True):
    assert batch.keys() == other.keys()
    for name, array in batch.items():
      assert array.dtype == other[name].dtype
      np.testing.assert_array_equal(array, other[name])


@pytest.mark.parametrize("num_batches", [0, 1, 5, 60])
def test_batches_come_in_order_and_equal_the_function(
  with_tensorflow, num_batches
):
  start = 3
  batches = list(
    pipeline.iterate_batches(_Examples(), 16, start, start + num_batches)
  )
  expected = [
    _Examples().batch(np.arange(16 * n, 16 * (n + 1)))
    for n in range(start, start + num_batches)
  ]
  _assert_equal(batches, expected)


def test_a_resumed_pipeline_yields_the_rest(with_tensorflow):
  whole = list(pipeline.iterate_batches(_Examples(), 8, 0, 30))
  for step in (1, 13, 29, 30):
    rest = list(pipeline.iterate_batches(_Examples(), 8, step, 30))
    _assert_equal(rest, whole[step:])


def test_hosts_share_out_the_rows_of_each_batch(with_tensorflow):
  whole = list(pipeline.iterate_batches(_Examples(), 16, 0, 5))
  hosts = [
    list(pipeline.iterate_batches(_Examples(), 16, 0, 5, slice(h, h + 4)))
    for h in range(0, 16, 4)
  ]
  joined = [
    {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for parts in zip(*hosts, strict=True)
  ]
  _assert_equal(joined, whole)


def test_batches_are_built_ahead_but_not_without_end():
  """The thread without TensorFlow builds eight batches before they are due."""
  built = []

  def build(number):
    built.append(number)
    return number

  batches = pipeline._threaded(build, 0, 1000)
  assert next(batches) == 0
  batches.close()
  assert len(built) <= 2 * pipeline._AHEAD_BATCHES


def test_an_error_while_building_is_raised_as_it_is(with_tensorflow):
  """A full disk, found while a shard is copied, stays one line."""

  class Broken(_Examples):
    def batch(self, indices):
      if indices[0] >= 32:
        raise UserError("no such passage")
      return super().batch(indices)

  with pytest.raises(UserError, match=r"^no such passage$"):
    list(pipeline.iterate_batches(Broken(), 8, 0, 10))


def test_only_the_pipeline_imports_tensorflow():
  """Every module of the package comes in without it, in a fresh process."""
  paths = [str(ROOT / "bert_jax")]
  modules = [m.name for m in pkgutil.walk_packages(paths, "bert_jax.")]
  assert "bert_jax.data.pipeline" in modules
  code = f"""
import importlib, sys
for name in {modules}:
  importlib.import_module(name)
assert "tensorflow" not in sys.modules, "tensorflow"
"""
  environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  subprocess.run([sys.executable, "-c", code], env=environment, check=True)
  importers = {
    path.name
    for path in (ROOT / "bert_jax").rglob("*.py")
    if "import tensorflow as" in path.read_text()
  }
  assert importers == {"pipeline.py"}
