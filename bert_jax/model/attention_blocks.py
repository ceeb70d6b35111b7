"""How the TPU's attention kernel cuts its work.

A grid of (row, block of heads, chunk of queries) cuts it for the vector memory;
lane groups and columns cut a block for the vector registers. Letters as in
`attention_tpu.py`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bert_jax.sharding.packing import LANES, unit_size

# Scores of all heads of a block, at most: fewer blocks cost fewer starts, and
# more scores in a block more compilation and vector memory.
_MAX_BLOCK_SCORES = 2**19
# Queries that the backward pass works on at once: more spill more registers.
_COLUMN = 256


def cut(shape, num_heads):
  """Chooses blocks of heads and queries for an array `shape` [B, L, 3 D]."""
  rows, length, width = shape
  head_size = width // (3 * num_heads)
  groups = [
    group
    for group in range(1, num_heads + 1)
    if num_heads % group == 0
    and (group * head_size % LANES == 0 or group == num_heads)
  ]
  small = [g for g in groups if g * length**2 <= _MAX_BLOCK_SCORES]
  group = max(small, default=groups[0])
  chunks = [
    chunk for chunk in range(LANES, length + 1, LANES) if length % chunk == 0
  ] or [length]
  small = [c for c in chunks if group * c * length <= _MAX_BLOCK_SCORES]
  chunk = max(small, default=chunks[0])
  return Blocks(rows, length, num_heads, head_size, group, chunk)


def cut_columns(num_queries):
  """Cuts a block's queries for the vector registers: list of slices."""
  size = num_queries if num_queries % _COLUMN else _COLUMN
  return [slice(i, i + size) for i in range(0, num_queries, size)]


def lane_groups(blocks):
  """Yields a `LaneGroup` for every 128 lanes or so of a block."""
  head_size, unit = blocks.head_size, blocks.unit
  size = max(1, LANES // head_size) * head_size
  for first in range(0, blocks.group * head_size, unit):
    for begin in range(0, unit, size):
      end = min(begin + size, unit)
      owner = jax.lax.broadcasted_iota(
        jnp.int32, (blocks.length, end - begin), 1
      )
      yield LaneGroup(
        *[
          slice(3 * first + i * unit + begin, 3 * first + i * unit + end)
          for i in range(3)
        ],
        result=slice(first + begin, first + end),
        heads=slice((first + begin) // head_size, (first + end) // head_size),
        owned=[
          owner // head_size == j for j in range((end - begin) // head_size)
        ],
      )


def stack(x, group):
  """Makes [J * M, lanes] of float [M, lanes]: a copy a head, the rest zero."""
  zeros = jnp.zeros_like(x)
  return jnp.concatenate([jnp.where(own, x, zeros) for own in group.owned])


def unstack(x, group):
  """Takes from float [J * M, lanes] each head's own lanes: [M, lanes]."""
  first, *others = jnp.split(x, len(group.owned))
  for own, other in zip(group.owned[1:], others, strict=True):
    first = jnp.where(own, other, first)
  return first


@dataclasses.dataclass(frozen=True)
class LaneGroup:
  """J heads of a block that share the lanes of a register.

  Attributes:
    query: slice of the lanes of a packed block.
    key: slice of the same.
    value: slice of the same.
    result: slice of the lanes of a block of attention's result.
    heads: slice of the block's heads.
    owned: list of J bool [M, lanes], which lanes are a head's own.
  """

  query: slice
  key: slice
  value: slice
  result: slice
  heads: slice
  owned: list


@dataclasses.dataclass(frozen=True)
class Blocks:
  """How the work is cut into steps of a grid (row, group of heads, chunk).

  Attributes:
    rows: B.
    length: L of the whole sequence, which is also M.
    num_heads: N.
    head_size: H.
    group: heads of a block.
    chunk: queries of a block.
  """

  rows: int
  length: int
  num_heads: int
  head_size: int
  group: int
  chunk: int

  @property
  def grid(self):
    """Steps a dimension."""
    return (
      self.rows,
      self.num_heads // self.group,
      self.length // self.chunk,
    )

  @property
  def num_scores(self):
    """Scores of all rows and heads."""
    return self.rows * self.num_heads * self.length**2

  @property
  def shared(self):
    """Specs of words, head numbers and mask."""
    scalars = pl.BlockSpec(memory_space=pltpu.SMEM)
    mask = pl.BlockSpec((1, 1, self.length), lambda b, g, c: (b, 0, 0))
    return scalars, scalars, mask

  @property
  def unit(self):
    """See `packing.unit_size`."""
    return unit_size(self.num_heads * self.head_size, self.head_size, 1)

  def rows_of(self, column):
    """Index in all positions of a column of the block's queries."""
    if self.chunk == self.length:
      return column
    first = pl.multiple_of(pl.program_id(2) * self.chunk, self.chunk)
    return pl.ds(first + column.start, column.stop - column.start)

  @property
  def packed(self):
    """Spec of an array [B, L, 3 D] of which a block holds all positions."""
    shape = 1, self.length, 3 * self.group * self.head_size
    return pl.BlockSpec(shape, lambda b, g, c: (b, 0, g))

  @property
  def result(self):
    """Spec of an array [B, L, D] of which a block holds one chunk."""
    shape = 1, self.chunk, self.group * self.head_size
    return pl.BlockSpec(shape, lambda b, g, c: (b, c, g))

  def result_shape(self, dtype):
    """Shape of the same."""
    shape = self.rows, self.length, self.num_heads * self.head_size
    return jax.ShapeDtypeStruct(shape, dtype)

  @property
  def denominators(self):
    """Spec of the logarithms of the softmax denominators."""
    shape = 1, 1, self.group, self.chunk
    return pl.BlockSpec(shape, lambda b, g, c: (b, g, 0, c))

  @property
  def denominators_shape(self):
    """Shape of the same, in units of log 2."""
    shape = self.rows, self.num_heads // self.group, self.group, self.length
    return jax.ShapeDtypeStruct(shape, jnp.float32)

  @property
  def totals(self):
    """Scratch for the gradients of keys and values, if chunks are added up."""
    if self.chunk == self.length:
      return []
    shape = self.length, 3 * self.group * self.head_size
    return [pltpu.VMEM(shape, jnp.float32)]
