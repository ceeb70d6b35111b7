"""THE train step and eval step, as they run everywhere.

A step takes the rows that the host sends, makes the model's inputs on the
device, and divides each loss once, over the global batch. What is trained is
an `Objective`: pretraining has one, and so has every fine-tuning task. Every
random number depends on (seed, step, row) and not on the mesh.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from bert_jax.sharding import collectives, compiler_options, partitioning
from bert_jax.sharding import mesh as mesh_lib
from bert_jax.sharding import rows as rows_lib
from bert_jax.training import sums as sums_lib

# Held-out inputs are drawn from this seed, whatever the run's.
EVAL_SEED = 0


@dataclasses.dataclass(frozen=True)
class Objective:
  """What a step trains.

  Attributes:
    make_inputs: function (key, batch) -> inputs; dict of arrays [B, ...], from
      the rows that the host sends. The key is for masks.
    loss_weights: function of inputs to a dict of float32 scalars: the losses,
      whose sum is minimised, and by what each is divided.
    sums: function (params, inputs, dropout key or None) -> dict of (sum,
      weight): the losses, and whatever else is reported.
    dtype: of the layers' arithmetic.
    head_size: of attention's heads.
    teacher_params: parameters of another model, which training leaves as they
      are: nested dict of arrays or shapes, sharded by
      `partitioning.param_shardings`. The train step takes them as its third
      argument and `sums` as its fourth. None where there is no such model.
    teacher_head_size: of that model's attention heads.
  """

  make_inputs: Callable
  loss_weights: Callable
  sums: Callable
  dtype: str
  head_size: int
  teacher_params: dict | None = None
  teacher_head_size: int = 0


def make_train_step(config, objective, optimizer, schedule, mesh, state):
  """Builds the jitted train step.

  Args:
    config: the run's settings.
    objective: `Objective`.
    optimizer: optax transformation.
    schedule: function of the step to the learning rate, to report it.
    mesh: `jax.sharding.Mesh`.
    state: `TrainState` of arrays or shapes.

  Returns:
    Function (state, batch) -> (state, metrics), or (state, batch,
    teacher_params) of an objective with a teacher; the state is donated.
    `batch` holds the rows, `metrics` is a dict of float32 scalars.
  """
  weights_of, share_gradients = collectives.make_gather_and_scatter(
    mesh, state.params, objective.dtype, objective.head_size
  )
  global_norm = collectives.make_global_norm(mesh, state.params)
  gather_teacher, teacher_shardings = _teacher_gather(objective, mesh)

  def train_step(state, batch, *teacher):
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    inputs_key, dropout_key = jax.random.split(key)
    inputs = objective.make_inputs(inputs_key, batch)
    # Differentiated at the weights that the model computes with, so that a
    # gradient crosses the links in their dtype.
    grads, sums = _accumulate_gradients(
      objective,
      weights_of(state.params),
      inputs,
      dropout_key,
      config.optimizer.grad_accumulation,
      tuple(map(gather_teacher, teacher)),
    )
    grads = share_gradients(grads)
    metrics = sums_lib.mean_metrics(sums, objective.loss_weights(inputs))
    metrics["learning_rate"] = schedule(state.step)
    metrics["grad_norm"] = global_norm(grads)
    state = _apply_if_finite(optimizer, state, grads, metrics)
    metrics["skipped_steps"] = state.skipped_steps.astype(jnp.float32)
    return state, metrics

  state_shardings = partitioning.state_shardings(mesh, state, optimizer)
  return jax.jit(
    mesh_lib.traced_on(mesh, train_step),
    in_shardings=(
      state_shardings,
      rows_lib.batch_sharding(mesh),
      *teacher_shardings,
    ),
    out_shardings=(state_shardings, None),
    donate_argnums=0,
    compiler_options=compiler_options.compiler_options(mesh),
  )


def _teacher_gather(objective, mesh):
  """Returns how a teacher's weights are gathered, and their shardings."""
  params = objective.teacher_params
  if params is None:
    return None, ()
  gather, _ = collectives.make_gather_and_scatter(
    mesh, params, objective.dtype, objective.teacher_head_size
  )
  return gather, (partitioning.param_shardings(mesh, params),)


def make_eval_step(objective, mesh, params):
  """Builds the jitted evaluation of one batch.

  Args:
    objective: `Objective`.
    mesh: `jax.sharding.Mesh`.
    params: nested dict of arrays or shapes.

  Returns:
    Function (params, batch, number of the batch) -> dict of (sum, weight).
    The masks of an example depend on its place among all held-out examples,
    and not on the size of the batches.
  """

  def make_inputs(index, example):
    key = jax.random.fold_in(jax.random.key(EVAL_SEED), index)
    batch = jax.tree.map(lambda x: x[None], example)
    return jax.tree.map(lambda x: x[0], objective.make_inputs(key, batch))

  def eval_step(params, batch, number):
    batch_size = len(jax.tree.leaves(batch)[0])
    indices = number * batch_size + jnp.arange(batch_size)
    inputs = jax.vmap(make_inputs)(indices, batch)
    return objective.sums(params, inputs, None)

  return jax.jit(
    mesh_lib.traced_on(mesh, eval_step),
    in_shardings=(
      partitioning.param_shardings(mesh, params),
      rows_lib.batch_sharding(mesh),
      None,
    ),
  )


def _accumulate_gradients(
  objective, params, inputs, dropout_key, num_micro_batches, teacher
):
  """Sums the gradients of all micro-batches of a batch.

  The weights of the losses are those of the whole batch, so that the sum is
  the gradient of the whole batch and no mean of means. It is added up in
  float32 and rounded once to the dtype of `params`: in bfloat16 the sum of
  1,024 equal gradients stops growing at 256 of them. `teacher` holds the
  teacher's gathered weights, or nothing.

  Returns:
    (gradients, dict of (sum, weight)).
  """
  weights = objective.loss_weights(inputs)

  def loss_and_sums(params, inputs, key):
    sums = objective.sums(params, inputs, key, *teacher)
    loss = sum(
      sums_lib.divide((sums[name][0], weight))
      for name, weight in weights.items()
    )
    return loss, sums

  gradients = jax.grad(loss_and_sums, has_aux=True)
  if num_micro_batches == 1:
    return gradients(params, inputs, dropout_key)

  def micro_batches(rows):
    # Every micro-batch takes rows of every device.
    return rows.reshape(-1, num_micro_batches, *rows.shape[1:]).swapaxes(0, 1)

  keys = jax.random.split(dropout_key, num_micro_batches)
  xs = jax.tree.map(micro_batches, inputs), keys
  one = functools.partial(jax.tree.map, lambda x: x[0])
  shapes = jax.eval_shape(gradients, params, *one(xs))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes)
  total, _ = jax.lax.scan(
    lambda total, x: (
      jax.tree.map(jnp.add, total, gradients(params, *x)),
      None,
    ),
    zeros,
    xs,
  )
  return jax.tree.map(lambda x, shape: x.astype(shape.dtype), total, shapes)


def _apply_if_finite(optimizer, state, grads, metrics):
  """Updates the state, or only counts if a loss or gradient is not finite."""
  finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
  updates, opt_state = optimizer.update(
    grads, state.opt_state, state.params, grad_norm=metrics["grad_norm"]
  )
  params = optax.apply_updates(state.params, updates)
  keep = functools.partial(jnp.where, finite)
  return state.replace(
    step=state.step + 1,
    params=jax.tree.map(keep, params, state.params),
    opt_state=jax.tree.map(
      # The schedule follows the step, whether that updates or not.
      lambda new, old: (
        new if _is_schedule(new) else jax.tree.map(keep, new, old)
      ),
      opt_state,
      state.opt_state,
      is_leaf=_is_schedule,
    ),
    skipped_steps=jnp.where(finite, 0, state.skipped_steps + 1),
  )


def _is_schedule(node):
  return isinstance(node, optax.ScaleByScheduleState)
