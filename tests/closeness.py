"""Compares arrays of floats that two programs computed in different orders.

A sum of float32 numbers depends on its order, which differs between programs,
processors and devices, and the error is one of the sum's largest terms: an
element near zero may be off by many times itself. So differences are held
against the whole array and not against each element.
"""

import jax
import numpy as np

# float32 arithmetic in another order: a few dozen roundings of 6e-8 each.
REORDERED = 1e-5
# The same through all layers of a model and by another library, which also
# takes exponentials and square roots its own way.
OTHER_LIBRARY = 1e-4
# A model that computes in bfloat16: roundings of 2**-9 through its layers.
BFLOAT16 = 3e-2


# Of a tree's largest element: an array with less in it holds rounding only,
# such as the gradient of the keys' bias, which softmax does not depend on.
_NOISE = 1e-6


def assert_close(actual, expected, tolerance, name="", noise=0.0):
  """Checks that an array is another one, but for rounding.

  Args:
    actual: array of floats.
    expected: array of floats, the same shape.
    tolerance: the largest norm of the difference, and of any one element of
      it, relative to the norm and the largest element of `expected`.
    name: str for the message.
    noise: size of an element below which any difference is one of rounding.

  Raises:
    AssertionError: it is not; or something is not finite.
  """
  actual = np.asarray(actual, np.float64)
  expected = np.asarray(expected, np.float64)
  assert actual.shape == expected.shape, name
  assert np.isfinite(actual).all(), name
  difference = actual - expected
  for measure in (np.linalg.norm, lambda x: np.abs(x).max(initial=0)):
    error, size = measure(difference.ravel()), measure(expected.ravel())
    assert error <= tolerance * size + measure(np.full(expected.size, noise)), (
      f"{name} differs by {error:.3g}, which is {error / (size or 1):.3g} of "
      f"{size:.3g}; expected at most {tolerance:g}"
    )


def assert_trees_close(actual, expected, tolerance):
  """Checks that each array of a tree is that of another one; see above."""
  actual, structure = jax.tree.flatten_with_path(actual)
  expected, expected_structure = jax.tree.flatten_with_path(expected)
  assert structure == expected_structure
  noise = _NOISE * max(np.abs(leaf).max() for _, leaf in expected)
  for (path, a), (_, b) in zip(actual, expected, strict=True):
    assert_close(a, b, tolerance, jax.tree_util.keystr(path), noise)
