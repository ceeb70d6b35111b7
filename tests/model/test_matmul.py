"""Our einsum and its gradients equal `jnp.einsum`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bert_jax.model import matmul

# Every form that the model has, with the shapes of both sides.
FORMS = [
  ("...I,IO->...O", (3, 5, 8), (8, 12)),
  ("...I,IO->...O", (6, 8), (8, 12)),
  ("BLNH,BMNH->BNLM", (3, 5, 2, 4), (3, 7, 2, 4)),
  ("BNLM,BMNH->BLNH", (3, 2, 5, 7), (3, 7, 2, 4)),
  ("GRD,GVD->GRV", (1, 12, 8), (1, 16, 8)),
]


def _mesh(num_devices):
  return jax.make_mesh(
    (num_devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )


def _with_gradients(einsum, mesh, spec, x, y):
  """Returns the einsum and the gradients of a sum of its squares."""

  def loss(x, y):
    out = einsum(spec, x, y, preferred_element_type=jnp.float32)
    return jnp.sum(out**2), out

  def run(x, y):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return jax.grad(loss, (0, 1), has_aux=True)(x, y)

  rows = NamedSharding(mesh, PartitionSpec("data" if mesh.size > 1 else None))
  shardings = (rows, NamedSharding(mesh, PartitionSpec()))
  return jax.jit(run, in_shardings=shardings)(x, y)


@pytest.mark.parametrize(
  ("spec", "left", "right", "num_devices"),
  [
    *((*form, 1) for form in FORMS),
    ("...I,IO->...O", (16, 5, 8), (8, 12), 4),
    ("BLNH,BMNH->BNLM", (16, 5, 2, 4), (16, 7, 2, 4), 4),
    ("BNLM,BMNH->BLNH", (16, 2, 5, 7), (16, 7, 2, 4), 4),
  ],
)
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_results_and_gradients_equal_jnp_einsum(
  monkeypatch, spec, left, right, num_devices, platform
):
  monkeypatch.setattr(matmul, "platform", lambda: platform)
  rng = np.random.default_rng(0)
  # Few bits, so that bfloat16 holds every product and sum exactly.
  x, y = (
    jnp.asarray(rng.integers(-2, 3, shape), jnp.bfloat16)
    for shape in (left, right)
  )
  mesh = _mesh(num_devices)
  (dx, dy), out = _with_gradients(matmul.einsum, mesh, spec, x, y)
  f32 = jnp.float32
  (dx_plain, dy_plain), out_plain = _with_gradients(
    jnp.einsum, mesh, spec, x.astype(f32), y.astype(f32)
  )
  assert dx.dtype == dy.dtype == jnp.bfloat16
  np.testing.assert_array_equal(out, out_plain)
  for found, expected in ((dx, dx_plain), (dy, dy_plain)):
    np.testing.assert_allclose(found.astype(f32), expected, rtol=2**-8)


def test_bfloat16_on_a_cpu_multiplies_row_major_matrices_to_float32():
  """In the gradients as well."""
  x, y = jnp.ones((64, 32), jnp.bfloat16), jnp.ones((32, 16), jnp.bfloat16)
  mesh = _mesh(1)

  def program(einsum):
    run = jax.jit(lambda x, y: _with_gradients(einsum, mesh, "MI,IO->MO", x, y))
    text = run.lower(x, y).compile().as_text()
    return [line for line in text.splitlines() if " dot(" in line]

  dots = program(matmul.einsum)
  assert len(dots) == 3
  for line in dots:
    assert "f32[" in line.split(" dot(")[0]
    assert "lhs_contracting_dims={1}, rhs_contracting_dims={0}" in line
  plain = program(jnp.einsum)
  assert any("lhs_contracting_dims={0}" in line for line in plain)


@pytest.mark.parametrize("shape", [(12, 8), (3, 5, 8)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_bias_is_added_to_every_row_and_so_is_its_gradient(
  monkeypatch, shape, dtype
):
  """On a TPU, where the gradient is a matrix multiplication."""
  monkeypatch.setattr(matmul, "platform", lambda: "tpu")
  rng = np.random.default_rng(0)
  # Few bits, so that bfloat16 holds every sum exactly.
  x, grad = (jnp.asarray(rng.integers(-2, 3, shape), dtype) for _ in range(2))
  bias = jnp.asarray(rng.integers(-2, 3, 8), jnp.float32)
  out, pull = jax.vjp(matmul.add_bias, x, bias)
  x_grad, bias_grad = pull(grad)
  rows = (1,) * (x.ndim - 1)
  np.testing.assert_array_equal(out, x + bias.reshape(*rows, 8))
  np.testing.assert_array_equal(x_grad, grad)
  assert out.dtype == x.dtype
  assert bias_grad.dtype == bias.dtype
  axes = tuple(range(x.ndim - 1))
  np.testing.assert_array_equal(
    bias_grad, np.asarray(grad, np.float32).sum(axes)
  )
