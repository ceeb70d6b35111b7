"""Attention with dropout as two Pallas kernels, forward and backward.

The forward pass reads query, key and value and writes the result and the
logarithm of each query's softmax denominator. The backward pass reads them
again with the result's gradient and recomputes the probabilities. Scores,
probabilities and dropout masks stay in VMEM.

Scores are laid out as [M, L]: keys along sublanes, queries along lanes.
Softmax then adds up whole vector registers; a sum along lanes would wait for
the few cross-lane units. Two heads of 64 share the 128 lanes of a register:
one operand of a matrix multiplication is zeroed on the other head's lanes,
which takes no longer than a multiplication of 64 lanes and moves no lane. A
layer of BERT-base takes 50 us a chip at 256 x 128 on 16 chips of v5e, and took
112 with queries along sublanes; 588 and 852 us at 256 x 512 (VLIW bundles that
the compiler emits, times the steps of the grid, divided by the clock).

Inside a kernel: L queries of a grid step or column, M keys, H head size, J
heads that share lanes.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bert_jax.model import attention_blocks, dropout
from bert_jax.model.attention_blocks import stack, unstack
from bert_jax.sharding import packing

_LOWEST = jnp.finfo(jnp.float32).min
_LOG2_E = float(np.log2(np.e))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def fused_attention(
  packed, attention_mask, seeds, head_numbers, rate, interpret=False
):
  """Computes dot-product attention on one device.

  Args:
    packed: float [B, L, 3 D]; query, key and value of the sequences and heads
      of this device, see `packing.interleave`.
    attention_mask: bool [B, L]; False marks padding, which no query attends to.
    seeds: int32 [2, B], see `dropout.draw_seeds`; unused at rate 0.
    head_numbers: int32 [N], the numbers of these heads in the whole model,
      ascending without a gap; the first is a multiple of N.
    rate: dropout of the probabilities; 0 for none.
    interpret: if True, Pallas emulates the kernel, on any device.

  Returns:
    float [B, L, D], same dtype as `packed`.
  """
  args = packed, attention_mask, seeds, head_numbers
  return _forward(*args, rate, interpret)[0]


def _forward(packed, attention_mask, seeds, head_numbers, rate, interpret):
  blocks = attention_blocks.cut(packed.shape, len(head_numbers))
  out, denominators = _call(
    _forward_kernel,
    blocks,
    rate,
    interpret,
    inputs=(seeds, head_numbers, _mask_rows(attention_mask), packed),
    in_specs=[*blocks.shared, blocks.packed],
    out_shape=[blocks.result_shape(packed.dtype), blocks.denominators_shape],
    out_specs=[blocks.result, blocks.denominators],
    num_matmuls=2,
  )
  return out, (packed, attention_mask, seeds, head_numbers, denominators)


def _backward(rate, interpret, residuals, grad):
  packed, attention_mask, seeds, head_numbers, denominators = residuals
  blocks = attention_blocks.cut(packed.shape, len(head_numbers))
  shared = seeds, head_numbers, _mask_rows(attention_mask)
  (packed_grad,) = _call(
    _backward_kernel,
    blocks,
    rate,
    interpret,
    inputs=(*shared, packed, grad, denominators),
    in_specs=[
      *blocks.shared,
      blocks.packed,
      blocks.result,
      blocks.denominators,
    ],
    out_shape=[packed],
    out_specs=[blocks.packed],
    scratch_shapes=blocks.totals,
    num_matmuls=5,
  )
  return packed_grad, None, None, None


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
  num_matmuls,
  scratch_shapes=(),
):
  """Runs a kernel on every step of the grid.

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
    num_matmuls: matrix multiplications per head, for the cost estimate.
    scratch_shapes: VMEM that persists from one chunk of queries to the next.

  Returns:
    list of arrays.
  """
  lanes = max(blocks.head_size, packing.LANES)
  return pl.pallas_call(
    functools.partial(kernel, blocks=blocks, rate=rate),
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in out_shape],
    grid=blocks.grid,
    in_specs=in_specs,
    out_specs=out_specs,
    scratch_shapes=scratch_shapes,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "arbitrary")
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * num_matmuls * blocks.num_scores * lanes,
      transcendentals=blocks.num_scores,
      bytes_accessed=sum(x.size * x.dtype.itemsize for x in inputs[3:])
      + sum(x.size * x.dtype.itemsize for x in out_shape),
    ),
    # For whoever counts the instructions of one step.
    metadata={"grid_steps": str(math.prod(blocks.grid))},
    interpret=interpret,
  )(*inputs)


def _forward_kernel(
  seeds, head_numbers, mask, packed, out, denominators, *, blocks, rate
):
  column = slice(0, blocks.chunk)
  visible = _column(mask[0], blocks.chunk)
  drop = _make_drop(seeds, head_numbers, blocks, column, rate)
  for group in attention_blocks.lane_groups(blocks):
    q = packed[0, blocks.rows_of(column), group.query]
    values = packed[0, :, group.value].T
    keys = stack(packed[0, :, group.key], group)
    scores = _scores(keys, q, visible, blocks.head_size)
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
    out[0, :, group.result] = jnp.concatenate(outs).astype(out.dtype).T


def _backward_kernel(
  seeds,
  head_numbers,
  mask,
  packed,
  grad,
  denominators,
  packed_grad,
  *totals,
  blocks,
  rate,
):
  scale = blocks.head_size**-0.5 / (1 - rate)
  columns = attention_blocks.cut_columns(blocks.chunk)
  visible = _column(mask[0], columns[0].stop)
  drops = [
    _make_drop(seeds, head_numbers, blocks, column, rate) for column in columns
  ]
  for group in attention_blocks.lane_groups(blocks):
    k = packed[0, :, group.key]
    keys, values = stack(k, group), stack(packed[0, :, group.value], group)
    key_sum, value_sum = 0.0, 0.0
    for column, drop in zip(columns, drops, strict=True):
      rows = blocks.rows_of(column)
      q, g = packed[0, rows, group.query], grad[0, column, group.result]
      scores = _scores(keys, q, visible, blocks.head_size)
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
      packed_grad[0, rows, group.query] = (
        (jnp.concatenate(query_grads) * scale).astype(q.dtype).T
      )
      key_sum += _unstacked_dot(scores_grad, q, group)
      value_sum += _unstacked_dot(kept, g, group)
    sums = (group.key, key_sum * scale), (group.value, value_sum / (1 - rate))
    for lanes, part in sums:
      _write_sum(packed_grad, lanes, part, totals)


def _column(row, width):
  """Turns the float mask [1, M] into bool [M, width]."""
  return jnp.broadcast_to(row, (width, row.shape[-1])).T > 0


def _scores(keys, query, visible, head_size):
  """Computes scores [J, M, L] of float [J * M, lanes], in units of log 2."""
  scores = _dot(keys, query, 1, 1) * (head_size**-0.5 * _LOG2_E)
  return jnp.where(visible, scores.reshape(-1, *visible.shape), _LOWEST)


def _make_drop(seeds, head_numbers, blocks, column, rate):
  """Builds the dropout of a column of queries of a grid step.

  Args:
    seeds: reference, see `fused_attention`, as is the next.
    head_numbers: reference.
    blocks: `attention_blocks.Blocks`.
    column: slice of the grid step's queries.
    rate: see `fused_attention`.

  Returns:
    Function of a `LaneGroup` and arrays [J, M, L] to a list of the same with
    the dropped entries zeroed; the others are not scaled up.
  """
  if rate == 0:
    return lambda group, *arrays: arrays
  row, first_head = pl.program_id(0), pl.program_id(1) * blocks.group
  iota = functools.partial(
    jax.lax.broadcasted_iota,
    jnp.int32,
    (blocks.length, column.stop - column.start),
  )
  queries = iota(1) + (pl.program_id(2) * blocks.chunk + column.start)
  place = dropout.attention_place(queries, iota(0), blocks.length)
  hashed = dropout.hash_first(place, seeds[0, row])

  def draw_bits(head):
    seed = dropout.seed_of_head(seeds[1, row], head)
    return dropout.hash_second(hashed, seed)

  def drop(group, *arrays):
    # If so, heads 2i and 2i + 1 of the model, which share 32 random bits, are
    # neighbours j and j + 1 of the group, and the bits are drawn once.
    in_pairs = blocks.group % 2 == 0 and len(group.owned) % 2 == 0
    kept = []
    for j, xs in enumerate(zip(*arrays, strict=True)):
      head = head_numbers[first_head + group.heads.start + j]
      if not in_pairs or j % 2 == 0:
        bits = draw_bits(head)
      own = dropout.own_half(bits, j if in_pairs else head)
      keep = dropout.keep_bits(own, rate)
      kept.append([jnp.where(keep, x, 0.0) for x in xs])
    return [jnp.stack(x) for x in zip(*kept, strict=True)]

  return drop


def _unstacked_dot(x, y, group):
  """Multiplies float [J, M, L] by [L, lanes], each head on its own lanes.

  Returns:
    float32 [M, lanes].
  """
  product = _dot(x.reshape(-1, x.shape[-1]), y, 1, 0)
  return unstack(product, group)


def _write_sum(out, lanes, part, totals):
  """Writes a gradient that is summed over the chunks of queries so far.

  Args:
    out: reference [1, M, 3 D of the grid step].
    lanes: slice of its last dimension.
    part: float32 [M, lanes], this chunk's part of the sum.
    totals: (float32 reference [M, 3 D of the grid step],), or () where there
      is one chunk.
  """
  for total in totals:
    before = jnp.where(pl.program_id(2) == 0, 0.0, total[:, lanes])
    part = before + part
    total[:, lanes] = part
  out[0, :, lanes] = part.astype(out.dtype)


def _dot(a, b, a_axis, b_axis):
  """Multiplies matrices in the narrower dtype of the two; float32 result."""
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
