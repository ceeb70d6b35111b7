"""Dot-product attention: one function, and the device decides how.

`plain_attention` says what is computed, in einsums, and runs on CPU and GPU.
On a TPU `attention_tpu.py` computes the same, with the same dropout mask,
without ever writing the scores to memory. Shapes are spelled as in
`bert.py`; M is L again: the position that is read.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from bert_jax.model.attention_tpu import fused_attention
from bert_jax.model.dropout import draw_attention_keep
from bert_jax.model.matmul import einsum
from bert_jax.sharding import packing
from bert_jax.sharding.devices import BATCH_AXES, MODEL_AXIS, mesh_of_tpus

# The kernel's compiler multiplies no bfloat16 matrices for them.
_WITHOUT_KERNEL = ("TPU v2", "TPU v3")


def dot_product_attention(
  query, key, value, attention_mask, num_heads, dropout_rate, dropout_words
):
  """Lets every position read from the visible ones, head by head.

  The heads lie side by side in the last dimension. Split, its 64 entries a
  head would be padded to a TPU's 128 lanes, in the projections as well: a layer
  of BERT-base took 0.76 ms and not 0.66, the kernel apart (the compiler's
  estimate, 256 x 128 on 16 chips of v5e).

  Args:
    query: float [B, L, D].
    key: float [B, L, D].
    value: float [B, L, D].
    attention_mask: bool [B, L]; False marks padding, which nobody reads.
    num_heads: N.
    dropout_rate: of the attention probabilities.
    dropout_words: int32 [2, B], see `dropout.draw_words`, or None for none.

  Returns:
    float [B, L, D], same dtype as `value`.
  """
  settings = attention_mask, num_heads, dropout_rate, dropout_words
  if not _has_kernel():
    return plain_attention(query, key, value, *settings)
  unit = _unit_size(query.shape[-1], num_heads)
  packed = packing.interleave((query, key, value), unit)
  return _fused_attention(packed, *settings)


def packed_attention(
  packed, attention_mask, num_heads, dropout_rate, dropout_words
):
  """Same as `dot_product_attention` of float [B, L, 3 D], see `packing`."""
  settings = attention_mask, num_heads, dropout_rate, dropout_words
  if _has_kernel():
    return _fused_attention(packed, *settings)
  unit = _unit_size(packed.shape[-1] // 3, num_heads)
  return plain_attention(*packing.separate(packed, unit), *settings)


def plain_attention(
  query, key, value, attention_mask, num_heads, dropout_rate, dropout_words
):
  """Same arguments and result as `dot_product_attention`."""
  query, key, value = (
    x.reshape(*x.shape[:2], num_heads, -1) for x in (query, key, value)
  )
  scores = einsum(
    "BLNH,BMNH->BNLM", query, key, preferred_element_type=jnp.float32
  )
  scores = scores / query.shape[-1] ** 0.5
  # The most negative finite number: a row of nothing but padding stays finite.
  lowest = jnp.finfo(jnp.float32).min
  scores = jnp.where(attention_mask[:, None, None, :], scores, lowest)
  probs = nn.softmax(scores, axis=-1).astype(value.dtype)
  if dropout_words is not None and dropout_rate > 0:
    keep = draw_attention_keep(
      dropout_words, dropout_rate, num_heads, probs.shape[-1]
    )
    probs = jnp.where(keep, probs / (1 - dropout_rate), 0)
  out = einsum("BNLM,BMNH->BLNH", probs, value)
  return out.reshape(*out.shape[:2], -1)


def _has_kernel():
  """Tells whether the devices in context are TPUs that run the kernel."""
  mesh = mesh_of_tpus()
  kind = mesh and mesh.abstract_device.device_kind
  return mesh is not None and kind not in _WITHOUT_KERNEL


def _unit_size(width, num_heads):
  """Returns the unit that the weights of `width` columns are packed in."""
  num_shards = jax.sharding.get_abstract_mesh().shape.get(MODEL_AXIS, 1)
  return packing.unit_size(width, width // num_heads, num_shards)


def _fused_attention(
  packed, attention_mask, num_heads, dropout_rate, dropout_words
):
  """Runs the kernel on every device: the partitioner cannot split one.

  Every device computes its own rows and heads, and nothing crosses the links.
  """
  if dropout_words is None:
    dropout_rate, dropout_words = 0.0, jnp.zeros((2, len(packed)), jnp.int32)
  heads = PartitionSpec(BATCH_AXES, None, MODEL_AXIS)
  rows = PartitionSpec(BATCH_AXES)
  words = PartitionSpec(None, BATCH_AXES)
  island = jax.shard_map(
    lambda *arrays: fused_attention(*arrays, dropout_rate),
    mesh=mesh_of_tpus(),
    in_specs=(heads, rows, words, PartitionSpec(MODEL_AXIS)),
    out_specs=heads,
    check_vma=False,
  )
  head_numbers = jnp.arange(num_heads, dtype=jnp.int32)
  return island(packed, attention_mask, dropout_words, head_numbers)
