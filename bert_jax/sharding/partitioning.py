"""Which device holds which part of what: the mesh and the sharding table.

A run's devices form a mesh of three axes:

  data   each device sees other rows of the batch; float32 weights and the
         optimizer's moments are split over it between the steps, and whole
         weights are gathered once a step (ZeRO-1)
  fsdp   the same, but weights are gathered where they are used
  model  heads, feed-forward and vocabulary are split (tensor parallelism)

Two tables say the rest: a parameter's path gives the logical names of its
dimensions, a logical name gives its mesh axis. jax.jit with these shardings
inserts the collectives (what used to be called pjit).
"""

import functools
import math
import re

import jax
import numpy as np
import optax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bert_jax.errors import UserError
from bert_jax.sharding.devices import BATCH_AXES, MODEL_AXIS, num_row_shards

MESH_AXES = ("data", "fsdp", "model")

# Parameter path -> logical name of each dimension; None is never split.
PARAM_AXES = (
  (r"bert/embeddings/word_embeddings", ("vocab", "embed")),
  (r"bert/embeddings/(position|token_type)_embeddings", (None, "embed")),
  (r".*/LayerNorm/(scale|bias)", (None,)),
  (r".*/attention/self/(query|key|value)/kernel", ("embed", "heads")),
  (r".*/attention/self/(query|key|value)/bias", ("heads",)),
  (r".*/attention/output/dense/kernel", ("heads", "embed")),
  (r".*/intermediate/dense/kernel", ("embed", "mlp")),
  (r".*/intermediate/dense/bias", ("mlp",)),
  (r".*/layer_\d+/output/dense/kernel", ("mlp", "embed")),
  (r".*/output/dense/bias", (None,)),
  (r".*/(pooler|transform)/dense/kernel", ("embed", None)),
  (r".*/(pooler|transform)/dense/bias", (None,)),
  (r"cls/predictions/bias", ("vocab",)),
  (r"cls/seq_relationship/kernel", ("embed", None)),
  (r"cls/seq_relationship/bias", (None,)),
  (r"(classifier|qa_outputs)/kernel", ("embed", None)),
  (r"(classifier|qa_outputs)/bias", (None,)),
)

# Smaller matrices, biases and LayerNorms are not split over the data axis: to
# gather one takes longer than to update all of it.
MIN_SPLIT_SIZE = 2**14

# Logical name -> mesh axis.
MESH_AXIS_OF = {
  "vocab": MODEL_AXIS,
  "heads": MODEL_AXIS,
  "mlp": MODEL_AXIS,
  "embed": "fsdp",
}


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
  sizes = [config[axis] for axis in MESH_AXES]
  fixed = math.prod(size for size in sizes if size != -1)
  sizes = [len(devices) // fixed if size == -1 else size for size in sizes]
  if math.prod(sizes) != len(devices):
    raise UserError(
      f"config.mesh is {'x'.join(map(str, sizes))} (data x fsdp x model); "
      f"expected a product of {len(devices)}, the number of devices"
    )
  # In the order of the torus; unlike jax.make_mesh also where an axis takes
  # part of one of its dimensions, as 2 x 2 x 4 does on v4-32.
  arranged = mesh_utils.create_device_mesh(
    sizes, devices, allow_split_physical_axes=True
  )
  return Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def param_axes(path, shape):
  """Looks up the logical names of a parameter's dimensions.

  Args:
    path: str such as "bert/embeddings/word_embeddings".
    shape: tuple of int.

  Returns:
    tuple with a name or None per dimension.

  Raises:
    ValueError: no row of `PARAM_AXES` or more than one fits.
  """
  found = [
    axes
    for pattern, axes in PARAM_AXES
    if re.fullmatch(pattern, path) and len(axes) == len(shape)
  ]
  if len(found) != 1:
    raise ValueError(
      f"{path} {shape} matches {len(found)} rows of PARAM_AXES; expected 1. "
      "Add or narrow a row in bert_jax/sharding/partitioning.py."
    )
  return found[0]


def gathered_shardings(mesh, params):
  """Shards every parameter by the table, as the model computes with it.

  Args:
    mesh: `jax.sharding.Mesh`.
    params: nested dict of arrays or shapes.

  Returns:
    nested dict of `NamedSharding`, same structure.

  Raises:
    UserError: a dimension does not divide by its mesh axis.
  """

  def shard(path, leaf):
    name = "/".join(entry.key for entry in path)
    axes = [MESH_AXIS_OF.get(axis) for axis in param_axes(name, leaf.shape)]
    for size, axis in zip(leaf.shape, axes, strict=True):
      if axis and size % mesh.shape[axis]:
        raise UserError(
          f"config.mesh.{axis} is {mesh.shape[axis]}, which does not divide "
          f"{size}, a dimension of {name} {leaf.shape}"
        )
    return NamedSharding(mesh, PartitionSpec(*axes))

  return jax.tree.map_with_path(shard, params)


def param_shardings(mesh, params):
  """Shards every parameter as it is kept between the steps.

  By the table, and once more over the data axis. Same arguments, result and
  errors as `gathered_shardings`.
  """
  return jax.tree.map(
    _split_over_data, params, gathered_shardings(mesh, params)
  )


def state_shardings(mesh, state, optimizer):
  """Shards a whole train state.

  Args:
    mesh: `jax.sharding.Mesh`.
    state: `TrainState` of arrays or shapes.
    optimizer: the optax transformation whose state it holds.

  Returns:
    `TrainState` of `NamedSharding`.
  """
  whole = NamedSharding(mesh, PartitionSpec())
  params = param_shardings(mesh, state.params)
  # Everything in the optimizer state that looks like the parameters, the
  # moments, is split like them; counters are whole.
  opt_state = optax.tree_map_params(
    optimizer,
    lambda _, sharding: sharding,
    state.opt_state,
    params,
    transform_non_params=lambda _: whole,
  )
  return state.replace(
    step=whole, params=params, opt_state=opt_state, skipped_steps=whole
  )


def abstract_state(mesh, state, optimizer):
  """Adds its shardings to the shapes of a state, as it is restored to.

  Same arguments as `state_shardings`.

  Returns:
    `TrainState` of `ShapeDtypeStruct` with shardings.
  """
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    state,
    state_shardings(mesh, state, optimizer),
  )


def device_bytes(tree):
  """Counts the bytes of a tree that one device holds.

  Args:
    tree: pytree of arrays, or of shapes, with shardings.

  Returns:
    int.
  """
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def _split_over_data(leaf, sharding):
  """Adds the data axis to the longest dimension that divides by it (ZeRO-1).

  Of two that are as long, to the one that is not split over the model axis:
  the compiler finds no way from a product's split to both on one.

  Rajbhandari et al. 2019, arXiv 1910.02054: each device updates its share of
  the weights and the shares are gathered.
  """
  mesh, shape = sharding.mesh, leaf.shape
  if not is_split(leaf):
    return sharding
  spec = list(sharding.spec)
  order = sorted(
    range(len(shape)), key=lambda i: (-shape[i], spec[i] == MODEL_AXIS)
  )
  for i in order:
    axes = (spec[i], "data") if spec[i] else ("data",)
    if shape[i] % math.prod(mesh.shape[axis] for axis in axes) == 0:
      spec[i] = axes
      break
  return NamedSharding(mesh, PartitionSpec(*spec))


def is_split(leaf):
  """Tells whether a parameter is split over the data axis, if it divides."""
  return len(leaf.shape) > 1 and leaf.size >= MIN_SPLIT_SIZE


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


def batch_sharding(mesh):
  """Returns the sharding of everything whose first dimension is rows."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch_size(mesh, name, batch_size):
  """Checks that rows divide over the devices.

  Args:
    mesh: `jax.sharding.Mesh`.
    name: config key, for the message.
    batch_size: rows of one pass through the model, over all devices.

  Raises:
    UserError: they do not.
  """
  shards = num_row_shards(mesh)
  if batch_size % shards:
    raise UserError(
      f"config.{name} gives {batch_size} rows at a time; expected a multiple of"
      f" {shards}, the devices of mesh axes {' and '.join(BATCH_AXES)}"
    )


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


def local_rows(mesh, batch_size):
  """Returns which rows of a global batch this process feeds.

  Args:
    mesh: `jax.sharding.Mesh`; says which rows its devices hold, which need be
      neither contiguous nor held by this process alone.
    batch_size: rows of the global batch.

  Returns:
    int [rows], ascending.
  """
  size = batch_size // num_row_shards(mesh)
  firsts = size * np.asarray(_local_row_shards(mesh))
  return (firsts[:, None] + np.arange(size)).ravel()


def _local_row_shards(mesh):
  """Returns the numbers of the shards of rows that are held here, ascending."""
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
