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

# A block's last dimension comes in multiples of it, or is the whole array's;
# a matrix product over less of it takes as long.
LANES = 128
# Scores of all heads of a block, at most: fewer blocks cost fewer starts, and
# more scores in a block more compilation and vector memory.
_MAX_BLOCK_SCORES = 2**19
# Queries that the backward pass works on at once: more spill more registers.
_COLUMN = 256


def cut(shape, num_heads):
  """Chooses blocks of heads and queries for arrays `shape` [B, L, D]."""
  rows, length, width = shape
  head_size = width // num_heads
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


def lane_groups(key, head_size):
  """Yields a `LaneGroup` for every 128 lanes or so of a block."""
  length, width = key.shape[1:]
  size = max(1, LANES // head_size) * head_size
  for first in range(0, width, size):
    lanes = slice(first, min(first + size, width))
    heads = slice(first // head_size, lanes.stop // head_size)
    shape = length, lanes.stop - first
    owner = jax.lax.broadcasted_iota(jnp.int32, shape, 1) // head_size
    owned = [owner == j for j in range(heads.stop - heads.start)]
    yield LaneGroup(lanes, heads, owned)


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
    lanes: slice of the block's last dimension.
    heads: slice of the block's heads.
    owned: list of J bool [M, lanes], which lanes are a head's own.
  """

  lanes: slice
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
  def queries(self):
    """Spec of an array [B, L, D] of which a block holds one chunk."""
    shape = 1, self.chunk, self.group * self.head_size
    return pl.BlockSpec(shape, lambda b, g, c: (b, c, g))

  @property
  def keys(self):
    """Spec of an array [B, M, D] of which a block holds all positions."""
    shape = 1, self.length, self.group * self.head_size
    return pl.BlockSpec(shape, lambda b, g, c: (b, 0, g))

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
    shape = self.length, self.group * self.head_size
    return [pltpu.VMEM(shape, jnp.float32)] * 2
