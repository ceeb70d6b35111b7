"""What the model may ask about the devices that it is traced for."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

# Mesh axes that split the sequences of a batch; the axis that splits heads,
# feed-forward and vocabulary.
BATCH_AXES, MODEL_AXIS = ("data", "fsdp"), "model"


def platform():
  """Returns the platform of the mesh in context, such as "tpu", or None.

  A step puts its mesh in context (`mesh.traced_on`). Without a mesh the model
  takes the code path of CPUs.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device and device.platform


def mesh_of_tpus():
  """Returns the abstract mesh in context if it is of TPUs, or None."""
  is_tpu = platform() == "tpu"
  return jax.sharding.get_abstract_mesh() if is_tpu else None


def num_row_shards(mesh):
  """Returns into how many shards the sequences of a batch are split."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def copy_to_devices(table):
  """Broadcasts a table to one copy per batch shard.

  The word embeddings are used twice, at the input and in the masked-LM head.
  With a copy per shard, both gradients are added on each device and reduced
  over devices once. Gain for two layers of BERT-base, 256 x 128 on 16 chips of
  v5e: 5.29 to 4.35 ms, temporaries 0.44 to 0.27 GB (the compiler's estimate).

  Args:
    table: float [V, D].

  Returns:
    float [G, V, D], G the number of batch shards on TPUs, otherwise 1.
  """
  mesh = mesh_of_tpus()
  if mesh is None:
    return table[None]
  return jax.lax.with_sharding_constraint(
    jnp.broadcast_to(table[None], (num_row_shards(mesh), *table.shape)),
    PartitionSpec(BATCH_AXES, MODEL_AXIS, None),
  )
