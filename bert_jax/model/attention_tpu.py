"""Attention with dropout as one TPU kernel a direction, written in Pallas.

The forward pass reads query, key and value and writes the result and the
logarithm of each query's softmax denominator. The backward pass reads them
again with the result's gradient and recomputes the probabilities. Neither
scores nor probabilities nor dropout masks are ever in HBM.

Scores are laid out as [M, L]: keys along sublanes, queries along lanes.
Softmax then adds up whole vector registers, where a sum along lanes would
queue at the cross-lane units, and a query's denominator is one row.
Heads of 64 share the 128 lanes of a register: they are told apart by zeroing
one operand of a product, which takes as long as a product of 64 lanes, and no
lane is ever moved. By the schedule that the compiler emits (its bundles times
the steps of the grid, over the clock) a layer of BERT-base takes 50 us a chip
at 256 x 128 on 16 chips of v5e, and took 112 with queries along sublanes; 588
us and 852 at 256 x 512.

Inside a kernel: L query positions of a block or column, M key positions, H head
size, J heads that share lanes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bert_jax.model import attention_blocks, dropout
from bert_jax.model.attention_blocks import stack, unstack

_LOWEST = jnp.finfo(jnp.float32).min
_LOG2_E = float(np.log2(np.e))


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def fused_attention(
  query, key, value, attention_mask, words, head_numbers, rate, interpret=False
):
  """Computes dot-product attention on one device.

  Args:
    query: float [B, L, D]; the rows and heads of this device.
    key: float [B, L, D].
    value: float [B, L, D].
    attention_mask: bool [B, L]; False marks padding, which nobody reads.
    words: int32 [2, B], see `dropout.draw_words`; unused at rate 0.
    head_numbers: int32 [N], the numbers of these heads in the whole model,
      ascending without a gap; the first is a multiple of N.
    rate: dropout of the probabilities; 0 for none.
    interpret: if True, the kernel runs as plain operations on any device.

  Returns:
    float [B, L, D], same dtype as `value`.
  """
  args = query, key, value, attention_mask, words, head_numbers
  return _forward(*args, rate, interpret)[0]


def _forward(
  query, key, value, attention_mask, words, head_numbers, rate, interpret
):
  blocks = attention_blocks.cut(query.shape, len(head_numbers))
  shared = words, head_numbers, _mask_rows(attention_mask)
  out, denominators = _call(
    _forward_kernel,
    blocks,
    rate,
    interpret,
    inputs=(*shared, query, key, value),
    in_specs=[*blocks.shared, blocks.queries, blocks.keys, blocks.keys],
    out_shape=[value, blocks.denominators_shape],
    out_specs=[blocks.queries, blocks.denominators],
    products=2,
  )
  residuals = query, key, value, attention_mask, words, head_numbers
  return out, (*residuals, denominators)


def _backward(rate, interpret, residuals, grad):
  query, key, value, attention_mask, words, head_numbers, denominators = (
    residuals
  )
  blocks = attention_blocks.cut(query.shape, len(head_numbers))
  shared = words, head_numbers, _mask_rows(attention_mask)
  queries, keys = blocks.queries, blocks.keys
  grads = _call(
    _backward_kernel,
    blocks,
    rate,
    interpret,
    inputs=(*shared, query, key, value, grad, denominators),
    in_specs=[
      *blocks.shared,
      queries,
      keys,
      keys,
      queries,
      blocks.denominators,
    ],
    out_shape=[query, key, value],
    out_specs=[queries, keys, keys],
    scratch_shapes=blocks.totals,
    products=5,
  )
  return *grads, None, None, None


fused_attention.defvjp(_forward, _backward)


def _call(
  kernel,
  blocks,
  rate,
  interpret,
  *,
  inputs,
  in_specs,
  out_shape,
  out_specs,
  products,
  scratch_shapes=(),
):
  """Runs a kernel on every block of the grid.

  Args:
    kernel: function of references to the inputs' blocks, then the outputs',
      then the scratch.
    blocks: `attention_blocks.Blocks`.
    rate: see `fused_attention`, as is the next.
    interpret: bool.
    inputs: tuple of arrays.
    in_specs: a `BlockSpec` an input.
    out_shape: arrays or shapes that the outputs are like.
    out_specs: a `BlockSpec` an output.
    products: how many matrix products it computes for each head.
    scratch_shapes: what it keeps from one chunk of queries to the next.

  Returns:
    list of arrays.
  """
  lanes = max(blocks.head_size, attention_blocks.LANES)
  return pl.pallas_call(
    functools.partial(kernel, head_size=blocks.head_size, rate=rate),
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in out_shape],
    grid=blocks.grid,
    in_specs=in_specs,
    out_specs=out_specs,
    scratch_shapes=scratch_shapes,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "arbitrary")
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * products * blocks.num_scores * lanes,
      transcendentals=blocks.num_scores,
      bytes_accessed=sum(x.size * x.dtype.itemsize for x in inputs[3:])
      + sum(x.size * x.dtype.itemsize for x in out_shape),
    ),
    interpret=interpret,
  )(*inputs)


def _forward_kernel(
  words,
  head_numbers,
  mask,
  query,
  key,
  value,
  out,
  denominators,
  *,
  head_size,
  rate,
):
  visible = _column(mask[0], query.shape[1])
  drop = _make_drop(words, head_numbers, query, key, head_size, rate)
  for group in attention_blocks.lane_groups(key, head_size):
    q, values = query[0, :, group.lanes], value[0, :, group.lanes].T
    keys = stack(key[0, :, group.lanes], group)
    scores = _scores(keys, q, visible, head_size)
    highest = jnp.max(scores, axis=1, keepdims=True)
    odds = jnp.exp2(scores - highest)
    total = jnp.sum(odds, axis=1, keepdims=True)
    denominators[0, 0, group.heads] = (highest + jnp.log2(total))[:, 0]
    (kept,) = drop(group, odds)
    scale = 1 / ((1 - rate) * total)
    outs = [
      _dot(part, kept[j], 1, 0) * scale[j]
      for j, part in enumerate(jnp.split(values, len(kept)))
    ]
    out[0, :, group.lanes] = jnp.concatenate(outs).astype(out.dtype).T


def _backward_kernel(
  words,
  head_numbers,
  mask,
  query,
  key,
  value,
  grad,
  denominators,
  query_grad,
  key_grad,
  value_grad,
  *totals,
  head_size,
  rate,
):
  scale = head_size**-0.5 / (1 - rate)
  columns = attention_blocks.cut_columns(query.shape[1])
  visible = _column(mask[0], columns[0].stop)
  drops = [
    _make_drop(words, head_numbers, query, key, head_size, rate, column)
    for column in columns
  ]
  for group in attention_blocks.lane_groups(key, head_size):
    k, v = key[0, :, group.lanes], value[0, :, group.lanes]
    keys, values = stack(k, group), stack(v, group)
    key_sum, value_sum = 0.0, 0.0
    for column, drop in zip(columns, drops, strict=True):
      q, g = query[0, column, group.lanes], grad[0, column, group.lanes]
      scores = _scores(keys, q, visible, head_size)
      probs = jnp.exp2(
        scores - denominators[0, 0, group.heads, column][:, None]
      )
      probs_grad = _dot(values, g, 1, 1).reshape(scores.shape)
      kept, probs_grad = drop(group, probs, probs_grad)
      mean = jnp.sum(probs * probs_grad, axis=1, keepdims=True)
      scores_grad = (probs * (probs_grad - mean)).astype(q.dtype)
      query_grads = [
        _dot(part, scores_grad[j], 1, 0)
        for j, part in enumerate(jnp.split(k.T, len(kept)))
      ]
      query_grad[0, column, group.lanes] = (
        (jnp.concatenate(query_grads) * scale).astype(q.dtype).T
      )
      key_sum += _unstacked_dot(scores_grad, q, group)
      value_sum += _unstacked_dot(kept, g, group)
    _write_sum(key_grad, group.lanes, key_sum * scale, totals[:1])
    _write_sum(value_grad, group.lanes, value_sum / (1 - rate), totals[1:])


def _column(row, width):
  """Turns the float mask [1, M] into bool [M, width]."""
  return jnp.broadcast_to(row, (width, row.shape[-1])).T > 0


def _scores(keys, query, visible, head_size):
  """Computes scores [J, M, L] of float [J * M, lanes], in units of log 2."""
  scores = _dot(keys, query, 1, 1) * (head_size**-0.5 * _LOG2_E)
  return jnp.where(visible, scores.reshape(-1, *visible.shape), _LOWEST)


def _make_drop(
  words, head_numbers, query, key, head_size, rate, column=slice(None)
):
  """Builds the dropout of a column of a block's queries.

  Returns:
    Function of a `LaneGroup` and arrays [J, M, L] to a list of the same with
    the dropped entries zeroed; the others are not scaled up.
  """
  if rate == 0:
    return lambda group, *arrays: arrays
  (length, width), chunk = key.shape[1:], query.shape[1]
  first_query, end, _ = column.indices(chunk)
  num_heads = width // head_size
  row, block = pl.program_id(0), pl.program_id(1)
  iota = functools.partial(
    jax.lax.broadcasted_iota, jnp.int32, (length, end - first_query)
  )
  queries = iota(1) + (pl.program_id(2) * chunk + first_query)
  place = dropout.attention_place(queries, iota(0), length)
  hashed = dropout.hash_first(place, words[0, row])

  def draw_bits(head):
    word = dropout.word_of_head(words[1, row], head)
    return dropout.hash_second(hashed, word)

  def drop(group, *arrays):
    # Then heads 2i and 2i + 1 of the model, which share bits, are j and j + 1.
    in_pairs = num_heads % 2 == 0 and len(group.owned) % 2 == 0
    kept = []
    for j, xs in enumerate(zip(*arrays, strict=True)):
      head = head_numbers[block * num_heads + group.heads.start + j]
      if not in_pairs or j % 2 == 0:
        bits = draw_bits(head)
      own = dropout.own_half(bits, j if in_pairs else head)
      keep = dropout.keep_bits(own, rate)
      kept.append([jnp.where(keep, x, 0.0) for x in xs])
    return [jnp.stack(x) for x in zip(*kept, strict=True)]

  return drop


def _unstacked_dot(x, y, group):
  """Multiplies float [J, M, L] by [L, lanes]: float32 [M, lanes]."""
  product = _dot(x.reshape(-1, x.shape[-1]), y, 1, 0)
  return unstack(product, group)


def _write_sum(out, lanes, part, totals):
  """Writes what all chunks of queries so far add up to.

  Args:
    out: reference [1, M, D of the block].
    lanes: slice of D.
    part: float32 [M, lanes], of this chunk.
    totals: float32 reference [M, D of the block] in a tuple, or () where there
      is one chunk.
  """
  for total in totals:
    before = jnp.where(pl.program_id(2) == 0, 0.0, total[:, lanes])
    part = before + part
    total[:, lanes] = part
  out[0, :, lanes] = part.astype(out.dtype)


def _dot(a, b, a_axis, b_axis):
  """Contracts an axis of each matrix in the narrower dtype, in float32."""
  dtype = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
  dimensions = (((a_axis,), (b_axis,)), ((), ()))
  return jax.lax.dot_general(
    a.astype(dtype),
    b.astype(dtype),
    dimensions,
    preferred_element_type=jnp.float32,
  )


def _mask_rows(attention_mask):
  return attention_mask[:, None].astype(jnp.float32)
