"""Claims about the names of TPU slices."""

import math

import pytest

from bert_jax import topology
from bert_jax.errors import UserError


@pytest.mark.parametrize(
  ("name", "generation", "shape"),
  [
    ("v5e:4x4", "v5e", (4, 4)),
    ("v5litepod-16", "v5e", (4, 4)),
    ("v6e-16", "v6e", (4, 4)),
    ("V6E:16x16", "v6e", (16, 16)),
    ("v4-32", "v4", (2, 2, 4)),
    ("v5p-32", "v5p", (2, 2, 4)),
    ("v5p:2x2x4", "v5p", (2, 2, 4)),
  ],
)
def test_a_slice_is_found_by_shape_and_by_name(name, generation, shape):
  """The names of v4 and v5p count TensorCores, two a chip."""
  found, found_shape = topology.find_slice(name)
  assert (found.prefixes[0], found_shape) == (generation, shape)


@pytest.mark.parametrize("name", ["v5e:3x5", "v4-33", "h100", ""])
def test_an_unknown_slice_lists_the_known_ones(name):
  with pytest.raises(UserError, match=r"v5e:4x4 \(v5litepod-16\).*v4-32"):
    topology.find_slice(name)


def test_every_generation_has_slices_of_4_to_256_chips():
  for generation in topology.GENERATIONS:
    sizes = [math.prod(shape) for shape in generation.shapes]
    assert sizes == [4, 8, 16, 32, 64, 128, 256]
