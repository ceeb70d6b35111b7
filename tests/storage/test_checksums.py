"""Checksums: whatever changes an array changes its checksum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bert_jax.storage import checksums

KERNEL = np.random.default_rng(0).normal(size=(24, 24)).astype(np.float32)


def _checksum(array):
  return checksums.checksums({"x": jnp.asarray(array)})["x"]


def _flip(*places):
  changed = KERNEL.copy()
  for place, bit in places:
    changed.view(np.uint32)[place] ^= np.uint32(1 << bit)
  return changed


def _swap(a, b):
  changed = KERNEL.copy()
  changed[[a, b]] = changed[[b, a]]
  return changed


@pytest.mark.parametrize("bit", range(32))
def test_a_checksum_sees_every_bit(bit):
  assert _checksum(_flip(((3, 5), bit))) != _checksum(KERNEL)


@pytest.mark.parametrize(
  "changed",
  [
    _swap(0, 1),
    _swap(3, 22),
    KERNEL[::-1].copy(),
    KERNEL[:, ::-1].copy(),
    KERNEL.T.copy(),
    _flip(((0, 0), 31), ((7, 3), 31)),
    np.roll(KERNEL, 1),
    -KERNEL,
    np.zeros_like(KERNEL),
  ],
  ids=[
    "neighbours",
    "far rows",
    "rows reversed",
    "columns reversed",
    "transposed",
    "two signs",
    "rolled",
    "negated",
    "zeros",
  ],
)
def test_a_checksum_sees_order_and_signs(changed):
  assert _checksum(changed) != _checksum(KERNEL)


def test_a_checksum_sees_the_number_of_zeros():
  assert len({_checksum(np.zeros(n, np.float32)) for n in range(1, 9)}) == 8


def test_a_checksum_does_not_depend_on_the_mesh():
  mesh = jax.make_mesh((4, 2), ("a", "b"))
  for spec in (PartitionSpec("a", "b"), PartitionSpec(None, "a")):
    sharded = jax.device_put(KERNEL, NamedSharding(mesh, spec))
    assert _checksum(sharded) == _checksum(KERNEL)


def test_a_checksum_is_the_one_that_numpy_computes():
  """MurmurHash3's finalizer over word and index, as its author gives it."""

  def finalize(h):
    h ^= h >> 16
    h = h * 0x85EBCA6B % 2**32
    h ^= h >> 13
    h = h * 0xC2B2AE35 % 2**32
    return h ^ (h >> 16)

  words = KERNEL.view(np.uint32).ravel().tolist()
  expected = sum(finalize(w ^ finalize(i)) for i, w in enumerate(words))
  assert _checksum(KERNEL) == expected % 2**32
