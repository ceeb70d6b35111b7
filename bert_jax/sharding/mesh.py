"""The mesh of a run's devices.

It has three axes:

  data   each device sees other rows of the batch; float32 weights and the
         optimizer's moments are split over it between the steps, and whole
         weights are gathered once a step (ZeRO-1)
  fsdp   the same, but weights are gathered where they are used
  model  heads, feed-forward and vocabulary are split (tensor parallelism)
"""

import functools
import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from bert_jax.errors import UserError
from bert_jax.sharding.devices import MODEL_AXIS

MESH_AXES = ("data", "fsdp", "model")


def create_mesh(config, devices=None):
  """Arranges devices in a mesh.

  Args:
    config: `config.mesh`; devices per axis, -1 takes what is left.
    devices: list of jax devices; all of them by default.

  Returns:
    `jax.sharding.Mesh` with axes `MESH_AXES`.

  Raises:
    UserError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = mesh_sizes(config, len(devices))
  # In the order of the torus; unlike jax.make_mesh also where an axis takes
  # part of one of its dimensions, as 2 x 2 x 4 does on v4-32.
  arranged = mesh_utils.create_device_mesh(
    sizes, devices, allow_split_physical_axes=True
  )
  return Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def mesh_sizes(config, num_devices):
  """Returns the devices of each axis of `MESH_AXES`; same errors."""
  sizes = [config[axis] for axis in MESH_AXES]
  fixed = math.prod(size for size in sizes if size != -1)
  sizes = [num_devices // fixed if size == -1 else size for size in sizes]
  if math.prod(sizes) != num_devices:
    raise UserError(
      f"config.mesh is {'x'.join(map(str, sizes))} (data x fsdp x model); "
      f"expected a product of {num_devices}, the number of devices"
    )
  return sizes


def is_tpu(mesh):
  """Tells whether a mesh is made of TPUs."""
  return mesh.devices.flat[0].platform == "tpu"


def traced_on(mesh, function):
  """Makes a function's model know the devices that it is traced for.

  Args:
    mesh: `jax.sharding.Mesh`.
    function: to be jitted.

  Returns:
    Function like it; see `devices.platform`.
  """

  @functools.wraps(function)
  def traced(*args):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return function(*args)

  return traced


def check_heads(mesh, num_heads):
  """Checks that attention's heads divide over the model axis.

  Args:
    mesh: `jax.sharding.Mesh`.
    num_heads: attention heads of a layer.

  Raises:
    UserError: they do not.
  """
  shards = mesh.shape[MODEL_AXIS]
  if num_heads % shards:
    raise UserError(
      f"config.mesh.{MODEL_AXIS} is {shards}, which does not divide {num_heads}"
      " attention heads"
    )
