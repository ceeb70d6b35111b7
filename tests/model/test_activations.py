"""gelu in both dtypes against scipy's normal distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from bert_jax.model import activations


def _every_bfloat16():
  """Returns all finite numbers up to a hundred, in order."""
  bits = np.arange(2**16, dtype=np.uint16)
  numbers = np.sort(bits.view(jnp.bfloat16).astype(np.float32))
  return numbers[np.abs(numbers) < 100].astype(np.float64)


def test_gelu_in_float32_is_the_exact_one():
  x = np.linspace(-12, 12, 10_001).astype(np.float32)
  expected = x.astype(np.float64) * scipy.stats.norm.cdf(x.astype(np.float64))
  np.testing.assert_allclose(activations.gelu(x), expected, atol=2e-6)


def test_gelu_in_bfloat16_errs_by_its_rounding_and_3e_6():
  x = _every_bfloat16()
  exact = x * scipy.stats.norm.cdf(x)
  y = activations.gelu(jnp.asarray(x, jnp.bfloat16)).astype(np.float32)
  assert (np.abs(y - exact) <= 2.0**-8 * np.abs(exact) + 3.5e-6).all()


def test_the_slope_in_bfloat16_errs_by_its_rounding_and_1e_5():
  x = _every_bfloat16()
  exact = scipy.stats.norm.cdf(x) + x * scipy.stats.norm.pdf(x)
  slope = jax.vmap(jax.grad(activations.gelu))(jnp.asarray(x, jnp.bfloat16))
  error = np.abs(slope.astype(np.float32) - exact)
  assert (error <= 2.0**-8 * np.abs(exact) + 1e-5).all()
