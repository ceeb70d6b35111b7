"""What the model may know of the devices it is traced for."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

# Mesh axes over which rows are split, and the one of heads and vocabulary.
BATCH_AXES, MODEL_AXIS = ("data", "fsdp"), "model"


def platform():
  """Returns what kind of device the mesh in context has, such as "tpu".

  The steps put their mesh in context (`jax.sharding.use_abstract_mesh`); where
  none is, this is None and the plain form of everything runs.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device and device.platform


def mesh_of_tpus():
  """Returns the abstract mesh in context if it is one of TPUs, or None."""
  is_tpu = platform() == "tpu"
  return jax.sharding.get_abstract_mesh() if is_tpu else None


def num_row_shards(mesh):
  """Returns how many parts the rows of a batch are split in."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def copy_to_devices(table):
  """Gives each part of the batch a copy of a table to call its own.

  Where a table is used twice, each device first adds up its own gradients of
  both uses, and the sum crosses the links once. By the compiler's estimate for
  two layers of BERT-base, 256 x 128 on v5e-16: 5.29 to 4.35 ms, temporaries
  0.44 to 0.27 GB.

  Args:
    table: float [V, D].

  Returns:
    float [G, V, D], G the number of parts on TPUs, otherwise 1.
  """
  mesh = mesh_of_tpus()
  if mesh is None:
    return table[None]
  return jax.lax.with_sharding_constraint(
    jnp.broadcast_to(table[None], (num_row_shards(mesh), *table.shape)),
    PartitionSpec(BATCH_AXES, MODEL_AXIS, None),
  )
