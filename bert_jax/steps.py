"""THE train step and eval step of pretraining, as they run everywhere.

A step takes compact rows (ids and lengths), makes segment ids, attention mask
and masks on the device, and divides each loss once, over the global batch.
Every random number depends on (seed, step, row) and not on the mesh.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from bert_jax import losses, masking, partitioning
from bert_jax.modeling import BertForPreTraining, segment_inputs
from bert_jax.optimizer import create_schedule

# Held-out masks are drawn from this seed, whatever the run's.
EVAL_SEED = 0


def make_train_step(
  config, phase, bert_config, masking_vocab, optimizer, num_steps, mesh, state
):
  """Builds the jitted train step of one phase.

  Args:
    config: the run's settings.
    phase: `config.phase1` or `config.phase2`.
    bert_config: `BertConfig`.
    masking_vocab: `MaskingVocab`.
    optimizer: optax transformation.
    num_steps: steps of the whole run, for the learning rate reported.
    mesh: `jax.sharding.Mesh`.
    state: `TrainState` of arrays or shapes.

  Returns:
    Function (state, batch) -> (state, metrics); the state is donated. `batch`
    holds input_ids [B, L], a_length, length and next_sentence_labels [B];
    `metrics` is a dict of float32 scalars.
  """
  schedule = create_schedule(config.optimizer, num_steps)
  weights_of, share_gradients = partitioning.make_gather_and_scatter(
    mesh, state.params, bert_config.dtype
  )

  def train_step(state, batch):
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    mask_key, dropout_key = jax.random.split(key)
    inputs = make_inputs(config, phase, masking_vocab, mask_key, batch)
    # Differentiated at the weights that the model computes with, so that a
    # gradient crosses the links in their dtype.
    grads, sums = _accumulate_gradients(
      bert_config,
      weights_of(state.params),
      inputs,
      dropout_key,
      config.optimizer.grad_accumulation,
    )
    grads = share_gradients(grads)
    metrics = mean_metrics(sums)
    metrics["learning_rate"] = schedule(state.step)
    metrics["grad_norm"] = optax.tree.norm(grads)
    metrics["fill"] = jnp.mean(batch["length"] / phase.max_seq_length)
    state = _apply_if_finite(optimizer, state, grads, metrics)
    metrics["skipped_steps"] = state.skipped_steps.astype(jnp.float32)
    return state, metrics

  state_shardings = partitioning.state_shardings(mesh, state, optimizer)
  return jax.jit(
    train_step,
    in_shardings=(state_shardings, partitioning.batch_sharding(mesh)),
    out_shardings=(state_shardings, None),
    donate_argnums=0,
    compiler_options=partitioning.compiler_options(mesh),
  )


def make_eval_step(config, phase, bert_config, masking_vocab, mesh, params):
  """Builds the jitted evaluation of one batch.

  Args:
    config: the run's settings.
    phase: `config.phase1` or `config.phase2`.
    bert_config: `BertConfig`.
    masking_vocab: `MaskingVocab`.
    mesh: `jax.sharding.Mesh`.
    params: nested dict of arrays or shapes.

  Returns:
    Function (params, batch, number of the batch) -> dict of (sum, weight).
    The masks depend on the number of the batch alone.
  """

  def eval_step(params, batch, number):
    key = jax.random.fold_in(jax.random.key(EVAL_SEED), number)
    inputs = make_inputs(config, phase, masking_vocab, key, batch)
    return _forward_sums(bert_config, params, inputs, None)

  return jax.jit(
    eval_step,
    in_shardings=(
      partitioning.param_shardings(mesh, params),
      partitioning.batch_sharding(mesh),
      None,
    ),
  )


def make_inputs(config, phase, masking_vocab, key, batch):
  """Makes the model's inputs and labels of a compact batch.

  Args:
    config: the run's settings.
    phase: `config.phase1` or `config.phase2`.
    masking_vocab: `MaskingVocab`.
    key: PRNG key for the masks.
    batch: see `make_train_step`.

  Returns:
    dict of input_ids, token_type_ids, attention_mask [B, L],
    masked_lm_{positions, ids, weights} [B, K], next_sentence_labels [B].
  """
  token_type_ids, attention_mask = segment_inputs(
    batch["a_length"], batch["length"], phase.max_seq_length
  )
  masked = masking.mask_tokens(
    key,
    batch["input_ids"].astype(jnp.int32),
    batch["length"],
    masking_vocab,
    max_predictions=phase.max_predictions,
    **config.masking,
  )
  return masked | {
    "token_type_ids": token_type_ids,
    "attention_mask": attention_mask,
    "next_sentence_labels": batch["next_sentence_labels"],
  }


def mean_metrics(sums):
  """Turns sums of a global batch (or of several) into reported means.

  Args:
    sums: dict of (sum, weight), as `losses.pretraining_sums` makes it.

  Returns:
    dict of float32 scalars, with `loss`, the sum of both losses.
  """
  metrics = {name: losses.divide(pair) for name, pair in sums.items()}
  metrics["loss"] = metrics["mlm_loss"] + metrics["nsp_loss"]
  return metrics


def _forward_sums(bert_config, params, inputs, dropout_key):
  """Runs the model; returns a dict of (sum, weight)."""
  mlm_logits, nsp_logits = BertForPreTraining(bert_config).apply(
    {"params": params},
    inputs["input_ids"],
    inputs["token_type_ids"],
    inputs["attention_mask"],
    inputs["masked_lm_positions"],
    deterministic=dropout_key is None,
    rngs=None if dropout_key is None else {"dropout": dropout_key},
  )
  return losses.pretraining_sums(mlm_logits, nsp_logits, inputs)


def _accumulate_gradients(
  bert_config, params, inputs, dropout_key, num_micro_batches
):
  """Sums the gradients of all micro-batches of a batch.

  The weights of both losses are those of the whole batch, so that the sum is
  the gradient of the whole batch and no mean of means.

  Returns:
    (gradients, dict of (sum, weight)).
  """
  mlm_weight = inputs["masked_lm_weights"].sum()
  nsp_weight = jnp.float32(len(inputs["next_sentence_labels"]))

  def loss_and_sums(params, inputs, key):
    sums = _forward_sums(bert_config, params, inputs, key)
    mlm, nsp = sums["mlm_loss"][0], sums["nsp_loss"][0]
    loss = losses.divide((mlm, mlm_weight)) + nsp / nsp_weight
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
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  total, _ = jax.lax.scan(
    lambda total, x: (
      jax.tree.map(jnp.add, total, gradients(params, *x)),
      None,
    ),
    zeros,
    xs,
  )
  return total


def _apply_if_finite(optimizer, state, grads, metrics):
  """Updates the state, or only counts if a loss or gradient is not finite."""
  finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  keep = functools.partial(jax.tree.map, functools.partial(jnp.where, finite))
  return state.replace(
    step=state.step + 1,
    params=keep(params, state.params),
    opt_state=keep(opt_state, state.opt_state),
    skipped_steps=jnp.where(finite, 0, state.skipped_steps + 1),
  )
