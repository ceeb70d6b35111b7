"""Gathers weights, reduce-scatters gradients, computes the gradient norm.

Their shardings before and after are those of `partitioning.py`.
"""

import jax
import jax.numpy as jnp

from bert_jax.sharding import mesh as mesh_lib
from bert_jax.sharding import packing, partitioning
from bert_jax.sharding.devices import MODEL_AXIS


def make_gather_and_scatter(mesh, params, dtype, head_size):
  """Builds the gather of sharded weights and the scatter of gradients.

  On TPUs matrices are sent in the layers' dtype: each device rounds its own
  shard before the gather. Those of query, key and value are sent as one
  (`packing.py`). On other devices weights are gathered in float32.

  Args:
    mesh: `jax.sharding.Mesh`.
    params: nested dict of arrays or shapes.
    dtype: of the layers' arithmetic.
    head_size: of attention's heads.

  Returns:
    gather: function of sharded parameters to the weights that the loss is
      differentiated with respect to.
    scatter: function of the gradients of these weights to float32 gradients,
      sharded as the parameters are.
  """
  gathered = partitioning.gathered_shardings(mesh, params)
  sharded = partitioning.param_shardings(mesh, params)
  constrain = jax.lax.with_sharding_constraint

  def gather(params):
    return constrain(constrain(params, sharded), gathered)

  def scatter(grads):
    grads = constrain(grads, sharded)
    return jax.tree.map(lambda grad: grad.astype("float32"), grads)

  if not mesh_lib.is_tpu(mesh):
    return gather, scatter
  sizes = head_size, mesh.shape[MODEL_AXIS]

  def gather_packed(params):
    params = jax.tree.map(
      lambda x: x.astype(dtype) if partitioning.is_split(x) else x, params
    )
    # Packed before the gather, which needs no communication.
    packed = packing.pack_params(constrain(params, sharded), *sizes)
    packed = constrain(packed, packing.pack_shardings(sharded))
    return constrain(packed, packing.pack_shardings(gathered))

  def scatter_packed(grads):
    grads = constrain(grads, packing.pack_shardings(sharded))
    return scatter(packing.unpack_params(grads, *sizes))

  return gather_packed, scatter_packed


def make_global_norm(mesh, params):
  """Builds the global norm of all gradients.

  Squares of gradients of the same shape and sharding are added elementwise and
  summed once, since each reduction to a scalar has an overhead on TPUs. Gain:
  0.31 to 0.12 ms of BERT-base's step (the compiler's estimate, 256 x 128 on 16
  chips of v5e).

  Args:
    mesh: `jax.sharding.Mesh`.
    params: nested dict of arrays or shapes.

  Returns:
    Function of float32 gradients, sharded as the parameters are, to a float32
    scalar.
  """
  shardings = partitioning.param_shardings(mesh, params)

  def global_norm(grads):
    totals = {}
    for grad, sharding in zip(
      *map(jax.tree.leaves, (grads, shardings)), strict=True
    ):
      alike = grad.shape, sharding.spec
      totals[alike] = totals.get(alike, 0) + jnp.square(grad)
    return jnp.sqrt(sum(total.sum() for total in totals.values()))

  return global_norm
