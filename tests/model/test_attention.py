"""The TPU's attention kernel, interpreted, against attention in einsums."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bert_jax.model import (
  attention,
  attention_blocks,
  attention_tpu,
  dropout,
)
from bert_jax.planning import slices
from bert_jax.sharding import packing
from tests.closeness import OTHER_LIBRARY, REORDERED, assert_close

ROWS, HEADS = 3, 4


def _inputs(length, head_size, dtype):
  """Returns (query, key, value, gradient of the result), and the mask."""
  keys = jax.random.split(jax.random.key(0), 4)
  shape = (ROWS, length, HEADS * head_size)
  arrays = [jax.random.normal(key, shape).astype(dtype) for key in keys]
  lengths = jnp.array([length, length // 2, 3])
  return arrays, jnp.arange(length)[None] < lengths[:, None]


def _fused(query, key, value, mask, seeds, heads, rate):
  width = query.shape[-1]
  unit = packing.unit_size(width, width // len(heads), 1)
  packed = packing.interleave((query, key, value), unit)
  return attention_tpu.fused_attention(
    packed, mask, seeds, heads, rate, interpret=True
  )


def _numpy_attention(query, key, value, mask, keep, rate):
  """Attention with a given dropout mask [B, N, L, M], in float64."""
  query, key, value = (
    np.asarray(x, np.float64).reshape(*x.shape[:2], HEADS, -1)
    for x in (query, key, value)
  )
  scores = np.einsum("blnh,bmnh->bnlm", query, key) / query.shape[-1] ** 0.5
  odds = np.exp(scores - scores.max(-1, keepdims=True)) * mask[:, None, None]
  probs = odds / odds.sum(-1, keepdims=True)
  out = np.einsum("bnlm,bmnh->blnh", probs * keep / (1 - rate), value)
  return out.reshape(*out.shape[:2], -1)


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_the_kernel_computes_attention(rate):
  (query, key, value, _), mask = _inputs(32, 16, "float32")
  (seeds,) = dropout.draw_seeds(jax.random.key(5), 1, ROWS)
  keep = dropout.draw_attention_keep(seeds, rate, HEADS, 32)
  out = _fused(query, key, value, mask, seeds, jnp.arange(HEADS), rate)
  expected = _numpy_attention(query, key, value, mask, keep, rate)
  assert_close(out, expected, OTHER_LIBRARY)


@pytest.mark.parametrize(
  "length, head_size, dtype, tolerance",
  [
    (32, 16, "float32", 1e-5),
    (128, 64, "float32", 1e-5),
    (512, 64, "float32", 1e-5),
    # Half a unit of bfloat16 in each of three roundings.
    (128, 64, "bfloat16", 3 * 2**-9),
  ],
)
@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_forward_and_backward_equal_the_plain_form_with_the_same_mask(
  length, head_size, dtype, tolerance, rate
):
  """Equal gradients: the backward pass drops what the forward pass dropped."""
  (query, key, value, grad), mask = _inputs(length, head_size, dtype)
  (seeds,) = dropout.draw_seeds(jax.random.key(7), 1, ROWS)

  def plain(query, key, value):
    return attention.plain_attention(
      query, key, value, mask, HEADS, rate, seeds
    )

  def fused(query, key, value):
    return _fused(query, key, value, mask, seeds, jnp.arange(HEADS), rate)

  # The plain form in float32, so that only the kernel rounds.
  wide = [x.astype("float32") for x in (query, key, value)]
  out, pull = jax.vjp(plain, *wide)
  fused_out, fused_pull = jax.vjp(fused, query, key, value)
  expected = out, *pull(grad.astype("float32"))
  for a, b in zip(expected, (fused_out, *fused_pull(grad)), strict=True):
    assert b.dtype == dtype
    error = np.abs(a - b.astype("float32")).max() / np.abs(a).max()
    assert error < tolerance


def test_queries_in_chunks_compute_what_they_do_at_once(monkeypatch):
  """Gradients of keys and values add up over the chunks."""
  (query, key, value, grad), mask = _inputs(512, 16, "float32")
  (seeds,) = dropout.draw_seeds(jax.random.key(5), 1, ROWS)

  def run():
    out, pull = jax.vjp(
      lambda *x: _fused(*x, mask, seeds, jnp.arange(HEADS), 0.1),
      *(query, key, value),
    )
    return out, *pull(grad)

  at_once = run()
  monkeypatch.setattr(attention_blocks, "_MAX_BLOCK_SCORES", 2**18)
  shape = ROWS, 512, 3 * HEADS * 16
  assert attention_blocks.cut(shape, HEADS).chunk == 128
  for a, b in zip(at_once, run(), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads_a_device", [1, 2])
def test_a_device_with_some_rows_and_heads_computes_its_part(heads_a_device):
  """Masks depend on the numbers of rows and heads in the whole, not here."""
  (query, key, value, _), mask = _inputs(32, 16, "float32")
  (seeds,) = dropout.draw_seeds(jax.random.key(5), 1, ROWS)
  run = functools.partial(_fused, rate=0.1)
  whole = run(query, key, value, mask, seeds, jnp.arange(HEADS))
  for first in range(0, HEADS, heads_a_device):
    heads = np.arange(first, first + heads_a_device)
    lanes = slice(16 * first, 16 * (first + heads_a_device))
    part = run(
      *[x[1:, :, lanes] for x in (query, key, value)],
      mask[1:],
      seeds[:, 1:],
      jnp.asarray(heads),
    )
    assert_close(part, whole[1:, :, lanes], REORDERED)


def test_the_kernel_drops_its_share():
  """With uniform probabilities and values of 1 a row sums what is kept."""
  length = 128
  query = jnp.zeros((16, length, HEADS * 16))
  (seeds,) = dropout.draw_seeds(jax.random.key(0), 1, 16)
  out = _fused(
    query,
    query,
    jnp.ones_like(query),
    jnp.ones((16, length), bool),
    seeds,
    jnp.arange(HEADS),
    0.1,
  )
  kept = np.asarray(out)[:, :, ::16] * 0.9
  draws = kept.size * length
  assert kept.mean() == pytest.approx(0.9, abs=4 * (0.09 / draws) ** 0.5)
  # And a row's share varies as a binomial one does.
  assert kept.std() == pytest.approx((0.09 / length) ** 0.5, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("length", [512, 1024, 2048])
@pytest.mark.parametrize(
  "name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"]
)
def test_the_kernel_compiles_at_every_length(name, length):
  """Both directions, in bfloat16, within the vector memory of the chip."""
  devices = slices.describe_devices(slices.find_slice(name))
  mesh = Mesh(np.array(devices[:1]), "x", axis_types=(AxisType.Auto,))

  def gradient(packed, mask, seeds, heads, grad):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      _, pull = jax.vjp(
        lambda x: attention_tpu.fused_attention(x, mask, seeds, heads, 0.1),
        packed,
      )
      return pull(grad)

  shapes = [
    ((2, length, 3 * 2 * 64), jnp.bfloat16),
    ((2, length), jnp.bool_),
    ((2, 2), jnp.int32),
    ((2,), jnp.int32),
    ((2, length, 2 * 64), jnp.bfloat16),
  ]
  whole = NamedSharding(mesh, PartitionSpec())
  args = [jax.ShapeDtypeStruct(*shape, sharding=whole) for shape in shapes]
  text = jax.jit(gradient).lower(*args).compile().as_text()
  assert text.count('custom_call_target="tpu_custom_call"') == 2


@pytest.mark.parametrize(
  "length, heads, head_size, heads_a_block, queries_a_block",
  [
    (128, 12, 64, 12, 128),
    (512, 12, 64, 2, 512),
    (512, 3, 64, 3, 256),
    (128, 16, 64, 16, 128),
    (1024, 12, 64, 2, 256),
    (2048, 12, 64, 2, 128),
    (72, 12, 64, 12, 72),
  ],
)
def test_blocks_fill_the_lanes(
  length, heads, head_size, heads_a_block, queries_a_block
):
  blocks = attention_blocks.cut((16, length, 3 * heads * head_size), heads)
  assert (blocks.group, blocks.chunk) == (heads_a_block, queries_a_block)
