"""The comparison of arrays forgives rounding and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.closeness import REORDERED, assert_close, assert_trees_close


def _gradients(x, kernel):
  """Gradients of a small layer, by a loss with terms of both signs."""

  weights = jnp.linspace(-1, 1, 24)[None]

  def loss(kernel, bias):
    return jnp.sum(jnp.tanh(x @ kernel + bias[None]) * weights)

  found = jax.grad(loss, (0, 1))(kernel, jnp.zeros(24))
  return {"kernel": np.array(found[0]), "bias": np.array(found[1])}


@pytest.fixture(scope="module", name="gradients")
def _fixture():
  x, kernel = jax.random.normal(jax.random.key(0), (2, 24, 24))
  return _gradients(x, kernel)


def test_another_order_of_the_rows_is_only_rounding(gradients):
  x, kernel = jax.random.normal(jax.random.key(0), (2, 24, 24))
  assert_trees_close(_gradients(x[::-1], kernel), gradients, REORDERED)


def test_an_element_near_zero_may_differ_by_many_times_itself():
  expected = np.array([1.0, 1e-8], np.float32)
  assert_close(expected + np.float32([0, 1e-7]), expected, REORDERED)


@pytest.mark.parametrize(
  "mutate",
  [
    lambda g: g | {"kernel": g["kernel"].T},
    lambda g: g | {"kernel": g["kernel"][::-1]},
    lambda g: g | {"kernel": g["kernel"] * 1.0001},
    lambda g: g | {"bias": g["bias"] * np.where(np.arange(24) == 7, -1, 1)},
    lambda g: g | {"bias": np.where(np.arange(24) == 7, 0, g["bias"])},
    lambda g: g | {"bias": np.where(np.arange(24) == 7, np.nan, g["bias"])},
    lambda g: g | {"kernel": g["kernel"].astype(jnp.bfloat16)},
    lambda g: {"kernel": g["kernel"]},
  ],
  ids=[
    "transposed",
    "reversed",
    "scaled",
    "sign",
    "zero",
    "nan",
    "bf16",
    "gone",
  ],
)
def test_a_fault_is_seen(gradients, mutate):
  with pytest.raises(AssertionError):
    assert_trees_close(mutate(gradients), gradients, REORDERED)
