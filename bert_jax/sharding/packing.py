"""Packs the weights of query, key and value into one matrix.

On TPUs a step computes with one matrix [D, 3 D]: one matrix multiplication, one
all-gather and one gradient reduction a layer instead of three. Packing happens
inside the step; parameters, optimizer state and checkpoints hold three.

Columns are interleaved in units of whole heads: a unit of query, the same heads
of key, then of value. So a device of the model axis, and a grid step of the
attention kernel, holds all three of its own heads.
"""

import jax.numpy as jnp

NAMES = ("query", "key", "value")
PACKED = "query_key_value"
# Lanes of a TPU's vector register, which a unit should fill.
LANES = 128


def unit_size(width, head_size, num_shards):
  """Returns how many columns make a unit.

  Args:
    width: D, columns of query on all devices together.
    head_size: H.
    num_shards: devices that the heads are split over.

  Returns:
    int: as many heads as fill the lanes, or all columns of a device if that
    does not divide them.
  """
  unit = max(1, LANES // head_size) * head_size
  share = width // num_shards
  return share if share % unit else unit


def interleave(arrays, unit):
  """Packs query, key and value [..., D] into [..., 3 D]."""
  split = [x.reshape(*x.shape[:-1], -1, unit) for x in arrays]
  return jnp.stack(split, axis=-2).reshape(*arrays[0].shape[:-1], -1)


def separate(packed, unit):
  """Unpacks [..., 3 D] into a list of query, key and value [..., D]."""
  split = packed.reshape(*packed.shape[:-1], -1, len(NAMES), unit)
  shape = *packed.shape[:-1], packed.shape[-1] // len(NAMES)
  return [split[..., i, :].reshape(shape) for i in range(len(NAMES))]


def pack_params(params, head_size, num_shards):
  """Packs every layer's weights of query, key and value.

  Args:
    params: nested dict of arrays.
    head_size: H.
    num_shards: devices that the heads are split over.

  Returns:
    The same dict, with `PACKED` instead of the three `NAMES`.
  """

  def pack(own):
    leaves = own[NAMES[0]]
    unit = unit_size(leaves["bias"].shape[-1], head_size, num_shards)
    return {
      PACKED: {
        leaf: interleave([own[name][leaf] for name in NAMES], unit)
        for leaf in leaves
      }
    }

  return _replace(params, NAMES[0], pack)


def unpack_params(params, head_size, num_shards):
  """Undoes `pack_params`."""

  def unpack(own):
    width = own[PACKED]["bias"].shape[-1] // len(NAMES)
    unit = unit_size(width, head_size, num_shards)
    parts = {leaf: separate(x, unit) for leaf, x in own[PACKED].items()}
    return {
      name: {leaf: parts[leaf][i] for leaf in parts}
      for i, name in enumerate(NAMES)
    }

  return _replace(params, PACKED, unpack)


def pack_shardings(shardings):
  """Returns the shardings of packed parameters: those of the query.

  Args:
    shardings: nested dict of `NamedSharding`, of unpacked parameters.

  Returns:
    nested dict of `NamedSharding`, as `pack_params` packs parameters.
  """
  return _replace(shardings, NAMES[0], lambda own: {PACKED: own[NAMES[0]]})


def _replace(tree, name, change):
  """Applies `change` to every dict of a nested dict that holds `name`."""
  if not isinstance(tree, dict):
    return tree
  if name in tree:
    return change(tree)
  return {key: _replace(value, name, change) for key, value in tree.items()}
