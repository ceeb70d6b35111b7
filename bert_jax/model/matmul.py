"""Sums of products, in the form that the device at hand multiplies fastest."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from bert_jax.sharding.devices import platform


def einsum(spec, x, y, preferred_element_type=None):
  """Same as `jnp.einsum` of two arrays; every label that is summed is in both.

  Its gradients are products of one dtype: what comes back is rounded to that of
  `x`, where `jnp.einsum` would widen the other side.

  XLA's CPU backend reaches a processor's bfloat16 units only with row-major
  matrices and a float32 result, and neither is what an einsum or its gradient
  gives it: BERT-base, 8 x 128, went from 2.7 to 6.0 sequences/s on two cores
  (21 November 2026). In float32 the copies cost more than they gain.
  """
  dtype = preferred_element_type or x.dtype
  on_cpu = platform() == "cpu" and x.dtype == jnp.bfloat16
  if dtype == x.dtype and not on_cpu:
    return jnp.einsum(spec, x, y)
  spec = spec.replace("...", "abcdefgh"[: x.ndim - spec.index(",") + 3])
  return _float32_einsum(spec, x, y).astype(dtype)


def add_bias(x, bias, dtype=None):
  """Adds a bias to every row.

  Its gradient is a sum over all rows, which a TPU's matrix units take over as a
  product with ones. As a sum, a query's takes four times as long as reading the
  rows (256 x 128 on 16 chips of v5e) or seven (4,096 x 128). As a product, two
  layers of BERT-base, 256 x 128, go from 4.12 to 4.06 ms. All by the compiler's
  estimate.

  Args:
    x: float [..., O].
    bias: float32 [O].
    dtype: what gradients are rounded to for that product; by default that of
      `x`.

  Returns:
    Like `x`.
  """
  if platform() == "tpu":
    return _add_bias_on_tpu(dtype or x.dtype, x, bias)
  return _add_bias(x, bias)


def _add_bias(x, bias):
  return (x + bias.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _add_bias_on_tpu(dtype, x, bias):
  return _add_bias(x, bias)


def _add_bias_forward(dtype, x, bias):
  return _add_bias(x, bias), None


def _add_bias_backward(dtype, _, grad):
  rows = grad.reshape(-1, grad.shape[-1]).astype(dtype)
  # As a vector the ones would make it a sum again.
  ones = jnp.ones((8, len(rows)), dtype)
  total = jnp.matmul(ones, rows, precision="highest")[0]
  return grad, total.astype(jnp.float32)


_add_bias_on_tpu.defvjp(_add_bias_forward, _add_bias_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _float32_einsum(spec, x, y):
  if platform() == "cpu":
    return _row_major_einsum(spec, x, y)
  return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _float32_einsum_forward(spec, x, y):
  return _float32_einsum(spec, x, y), (x, y)


def _float32_einsum_backward(spec, residuals, grad):
  x, y = residuals
  inputs, out = spec.split("->")
  left, right = inputs.split(",")
  grad = grad.astype(x.dtype)
  return (
    _float32_einsum(f"{out},{right}->{left}", grad, y).astype(x.dtype),
    _float32_einsum(f"{out},{left}->{right}", grad, x).astype(y.dtype),
  )


_float32_einsum.defvjp(_float32_einsum_forward, _float32_einsum_backward)


def _row_major_einsum(spec, x, y):
  """Computes an einsum as a batch of products of matrices, in float32."""
  inputs, out = spec.split("->")
  left, right = inputs.split(",")
  if out[-1] in left:  # or the result would have to be transposed
    left, right, x, y = right, left, y, x
  batch = [label for label in left if label in right and label in out]
  summed = [label for label in left if label in right and label not in out]
  rows = [label for label in left if label not in right]
  columns = [label for label in right if label not in left]
  sizes = dict(zip(left + right, x.shape + y.shape, strict=True))

  def matrices(array, labels, *groups):
    order = [labels.index(label) for group in groups for label in group]
    shape = [math.prod(sizes[label] for label in group) for group in groups]
    array = array.transpose(order).reshape(shape)
    return with_layout_constraint(array, Layout((0, 1, 2)))

  result = jnp.matmul(
    matrices(x, left, batch, rows, summed),
    matrices(y, right, batch, summed, columns),
    preferred_element_type=jnp.float32,
  )
  result = with_layout_constraint(result, Layout((0, 1, 2)))
  labels = batch + rows + columns
  result = result.reshape([sizes[label] for label in labels])
  return result.transpose([labels.index(label) for label in out])
