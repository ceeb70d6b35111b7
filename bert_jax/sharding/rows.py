"""Which rows (sequences) of a batch each device and each process holds."""

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bert_jax.errors import UserError
from bert_jax.sharding.devices import BATCH_AXES, num_row_shards


def batch_sharding(mesh):
  """Returns the sharding of everything whose first dimension is rows."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch_size(mesh, name, batch_size):
  """Checks that a batch divides over the devices.

  Args:
    mesh: `jax.sharding.Mesh`.
    name: config key, for the message.
    batch_size: rows of a batch or micro-batch, over all devices.

  Raises:
    UserError: it does not.
  """
  shards = num_row_shards(mesh)
  if batch_size % shards:
    raise UserError(
      f"config.{name} gives {batch_size} rows at a time; expected a multiple of"
      f" {shards}, the devices of mesh axes {' and '.join(BATCH_AXES)}"
    )


def local_rows(mesh, batch_size):
  """Returns which rows of a global batch this process feeds.

  Args:
    mesh: `jax.sharding.Mesh`. The rows of a process' devices need be neither
      contiguous nor on its devices alone.
    batch_size: rows of the global batch.

  Returns:
    int [rows], ascending.
  """
  size = batch_size // num_row_shards(mesh)
  firsts = size * np.asarray(_local_row_shards(mesh))
  return (firsts[:, None] + np.arange(size)).ravel()


def _local_row_shards(mesh):
  """Returns the numbers of the row shards on this process' devices, sorted."""
  one_row_each = (num_row_shards(mesh),)
  held = batch_sharding(mesh).addressable_devices_indices_map(one_row_each)
  return sorted({rows.start or 0 for (rows,) in held.values()})


def global_batch(mesh, batch):
  """Puts this process' rows of a batch on its devices.

  Args:
    mesh: `jax.sharding.Mesh`.
    batch: dict of numpy [rows of this process, ...], those of `local_rows`.

  Returns:
    dict of global jax arrays [rows of all processes, ...].
  """
  sharding = batch_sharding(mesh)
  if jax.process_count() == 1:
    return jax.device_put(batch, sharding)
  held = _local_row_shards(mesh)

  def put(rows):
    size = len(rows) // len(held)

    def shard(index):
      begin = held.index((index[0].start or 0) // size) * size
      return rows[begin : begin + size]

    shape = (size * num_row_shards(mesh), *rows.shape[1:])
    return jax.make_array_from_callback(shape, sharding, shard)

  return {name: put(rows) for name, rows in batch.items()}
