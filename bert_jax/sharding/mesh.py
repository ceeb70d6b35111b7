"""The mesh of a run's devices.

It has three axes:

  data   splits the batch, and float32 weights and optimizer moments between
         steps; whole weights are gathered once a step (ZeRO-1)
  fsdp   the same, but each layer's weights are gathered where they are used
  model  splits heads, feed-forward and vocabulary (tensor parallelism)
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
    config: `config.mesh`; devices per axis, -1 for all remaining ones.
    devices: list of jax devices; all of them by default.

  Returns:
    `jax.sharding.Mesh` with axes `MESH_AXES`.

  Raises:
    UserError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = mesh_sizes(config, len(devices))
  # Neighbours in the mesh are neighbours in the torus. jax.make_mesh cannot
  # split a dimension of the torus between mesh axes.
  arranged = mesh_utils.create_device_mesh(
    sizes, devices, allow_split_physical_axes=True
  )
  return Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def mesh_sizes(config, num_devices):
  """Returns how many devices each axis of `MESH_AXES` has.

  Args:
    config: `config.mesh`.
    num_devices: int.

  Returns:
    list of int.

  Raises:
    UserError: the sizes do not multiply to `num_devices`.
  """
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
  """Wraps a function so that it is traced with a mesh in context.

  Args:
    mesh: `jax.sharding.Mesh`.
    function: to be jitted.

  Returns:
    function with the same arguments and result; within it,
    `devices.platform()` is that of the mesh.
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
