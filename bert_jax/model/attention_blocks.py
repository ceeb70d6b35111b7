"""Block sizes of the TPU's attention kernel.

The Pallas grid has a step for each (sequence, group of heads, chunk of
queries), so that a step's operands fit VMEM. Within a step, `LaneGroup`s of
heads and columns of queries are worked on in turn, so that intermediate values
fit the vector registers. Letters as in `attention_tpu.py`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bert_jax.sharding.packing import LANES, unit_size

# Most scores of a grid step. Fewer, larger steps have less overhead; larger
# steps need more VMEM and take the compiler longer.
_MAX_BLOCK_SCORES = 2**19
# Queries that the backward pass works on at once; more would spill registers.
_COLUMN = 256


def cut(shape, num_heads):
  """Chooses the heads and queries of a grid step.

  Args:
    shape: [B, L, 3 D] of the packed array, on one device.
    num_heads: N on one device.

  Returns:
    `Blocks`.
  """
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
  """Returns slices of the queries of a grid step to work on in turn."""
  size = num_queries if num_queries % _COLUMN else _COLUMN
  return [slice(i, i + size) for i in range(0, num_queries, size)]


def lane_groups(blocks):
  """Yields the `LaneGroup`s of a grid step, of about 128 lanes each."""
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
  """Stacks one copy of float [M, lanes] per head: [J * M, lanes].

  Lanes of other heads are zero in a head's copy.
  """
  zeros = jnp.zeros_like(x)
  return jnp.concatenate([jnp.where(own, x, zeros) for own in group.owned])


def unstack(x, group):
  """Undoes `stack`: takes each head's own lanes of its copy: [M, lanes]."""
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
    owned: list of J bool [M, lanes], True on the lanes of the j-th head.
  """

  query: slice
  key: slice
  value: slice
  result: slice
  heads: slice
  owned: list


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Sizes of an attention kernel's grid of (sequence, heads, queries).

  Attributes:
    rows: B, sequences.
    length: positions of a sequence; all of them are keys of every grid step.
    num_heads: N.
    head_size: H.
    group: heads of a grid step.
    chunk: queries of a grid step.
  """

  rows: int
  length: int
  num_heads: int
  head_size: int
  group: int
  chunk: int

  @property
  def grid(self):
    """Steps of each dimension of the grid."""
    return (
      self.rows,
      self.num_heads // self.group,
      self.length // self.chunk,
    )

  @property
  def num_scores(self):
    """Scores of all sequences and heads."""
    return self.rows * self.num_heads * self.length**2

  @property
  def shared(self):
    """`BlockSpec`s of dropout seeds, head numbers and attention mask."""
    scalars = pl.BlockSpec(memory_space=pltpu.SMEM)
    mask = pl.BlockSpec((1, 1, self.length), lambda b, g, c: (b, 0, 0))
    return scalars, scalars, mask

  @property
  def unit(self):
    """See `packing.unit_size`."""
    return unit_size(self.num_heads * self.head_size, self.head_size, 1)

  def rows_of(self, column):
    """Returns the positions in the sequence of a column of queries."""
    if self.chunk == self.length:
      return column
    first = pl.multiple_of(pl.program_id(2) * self.chunk, self.chunk)
    return pl.ds(first + column.start, column.stop - column.start)

  @property
  def packed(self):
    """`BlockSpec` of an array [B, L, 3 D], all positions in a grid step."""
    shape = 1, self.length, 3 * self.group * self.head_size
    return pl.BlockSpec(shape, lambda b, g, c: (b, 0, g))

  @property
  def result(self):
    """`BlockSpec` of an array [B, L, D], one chunk of queries a grid step."""
    shape = 1, self.chunk, self.group * self.head_size
    return pl.BlockSpec(shape, lambda b, g, c: (b, c, g))

  def result_shape(self, dtype):
    """Shape and dtype of attention's result [B, L, D]."""
    shape = self.rows, self.length, self.num_heads * self.head_size
    return jax.ShapeDtypeStruct(shape, dtype)

  @property
  def denominators(self):
    """`BlockSpec` of the base-2 logarithms of the softmax denominators."""
    shape = 1, 1, self.group, self.chunk
    return pl.BlockSpec(shape, lambda b, g, c: (b, g, 0, c))

  @property
  def denominators_shape(self):
    """Shape and dtype of these logarithms."""
    shape = self.rows, self.num_heads // self.group, self.group, self.length
    return jax.ShapeDtypeStruct(shape, jnp.float32)

  @property
  def totals(self):
    """VMEM to sum key and value gradients over chunks; [] for one chunk."""
    if self.chunk == self.length:
      return []
    shape = self.length, 3 * self.group * self.head_size
    return [pltpu.VMEM(shape, jnp.float32)]
