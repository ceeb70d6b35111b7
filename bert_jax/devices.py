"""What the model may know of the devices it is traced for."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

# Mesh axes over which rows are split, and those of heads and vocabulary; see
# partitioning.py.
BATCH_AXES, MODEL_AXIS = ("data", "fsdp"), "model"


def mesh_of_tpus():
  """Returns the abstract mesh in context if it is one of TPUs, or None.

  The steps put their mesh in context (`jax.sharding.use_abstract_mesh`); where
  none is, or another kind of device, the plain form of everything runs.
  """
  mesh = jax.sharding.get_abstract_mesh()
  device = mesh.abstract_device
  return mesh if device is not None and device.platform == "tpu" else None


def copy_to_devices(table):
  """Gives each part of the batch a copy of a table to call its own.

  Where a table is used twice, each device first adds up its own gradients of
  both uses, and the sum crosses the links once.

  Args:
    table: float [V, D].

  Returns:
    float [G, V, D], G the number of parts on TPUs, otherwise 1.
  """
  mesh = mesh_of_tpus()
  if mesh is None:
    return table[None]
  parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
  return jax.lax.with_sharding_constraint(
    jnp.broadcast_to(table[None], (parts, *table.shape)),
    PartitionSpec(BATCH_AXES, MODEL_AXIS, None),
  )
