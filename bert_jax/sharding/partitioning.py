"""Shardings of the parameters and of the optimizer's state.

Two tables: a parameter's path gives the logical names of its dimensions, and a
logical name gives its mesh axis. jax.jit with these shardings inserts the
collectives (what used to be called pjit).
"""

import math
import re

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

from bert_jax.errors import UserError
from bert_jax.sharding.devices import MODEL_AXIS

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

# Smaller matrices, biases and LayerNorms are replicated over the data axis:
# gathering one takes longer than updating all of it.
MIN_SPLIT_SIZE = 2**14

# Logical name -> mesh axis.
MESH_AXIS_OF = {
  "vocab": MODEL_AXIS,
  "heads": MODEL_AXIS,
  "mlp": MODEL_AXIS,
  "embed": "fsdp",
}


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
  """Returns the shardings of the parameters within a step, by the table.

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
  """Returns the shardings of the parameters between steps.

  As `gathered_shardings`, whose arguments, result and errors are the same, and
  also over the data axis.
  """
  return jax.tree.map(
    _split_over_data, params, gathered_shardings(mesh, params)
  )


def state_shardings(mesh, state, optimizer):
  """Returns the shardings of a whole train state.

  Args:
    mesh: `jax.sharding.Mesh`.
    state: `TrainState` of arrays or shapes.
    optimizer: the optax transformation whose state it holds.

  Returns:
    `TrainState` of `NamedSharding`.
  """
  replicated = NamedSharding(mesh, PartitionSpec())
  params = param_shardings(mesh, state.params)
  # Moments have the tree of the parameters and are sharded like them; counters
  # are replicated.
  opt_state = optax.tree_map_params(
    optimizer,
    lambda _, sharding: sharding,
    state.opt_state,
    params,
    transform_non_params=lambda _: replicated,
  )
  return state.replace(
    step=replicated,
    params=params,
    opt_state=opt_state,
    skipped_steps=replicated,
  )


def abstract_state(mesh, state, optimizer):
  """Returns the shapes and shardings of a train state, to restore one to.

  Same arguments as `state_shardings`.

  Returns:
    `TrainState` of `ShapeDtypeStruct` with shardings.
  """
  return abstract_arrays(state, state_shardings(mesh, state, optimizer))


def abstract_arrays(shapes, shardings):
  """Combines shapes and shardings, to restore a checkpoint to.

  Args:
    shapes: pytree of arrays or shapes.
    shardings: pytree of shardings, the same structure.

  Returns:
    pytree of `jax.ShapeDtypeStruct`.
  """
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    shapes,
    shardings,
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

  Of two dimensions of equal length, to the one that the model axis does not
  split: XLA finds no direct way to reshard a gradient from "model" to both axes
  on one dimension.

  Rajbhandari et al. 2019, arXiv 1910.02054: each device updates its shard of
  the weights, and the shards are gathered.
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
  """Tells whether a parameter is large enough to split over the data axis."""
  return len(leaf.shape) > 1 and leaf.size >= MIN_SPLIT_SIZE
