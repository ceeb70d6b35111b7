"""Learning rate schedule, decay mask, AdamW and LAMB (BERT, appendix A.2)."""

import jax
import jax.numpy as jnp
import optax


def create_schedule(config, num_steps):
  """Builds linear warm-up to the peak, then linear decay to 0.

  The update of step t, counted from 0, uses

    peak * min((t + 1) / warmup_steps, (num_steps - t) / decay_steps, 1)

  with decay_steps = num_steps - warmup_steps. So the first step already moves
  the weights, step warmup_steps - 1 reaches the peak, the last step is small
  but not 0, and the curve has no jump. (The original code's decay counts from
  step 0, which makes the rate fall by warmup_steps / num_steps at once when
  warm-up ends; and its step 0 has rate 0.)

  Args:
    config: `config.optimizer`; learning_rate is the peak, warmup_steps may
      be 0.
    num_steps: length of the run, more than warmup_steps.

  Returns:
    Function of the step (int) to the learning rate (float32).
  """
  warmup_steps = max(config.warmup_steps, 1)
  decay_steps = num_steps - config.warmup_steps

  def schedule(step):
    warmup = (step + 1) / warmup_steps
    decay = (num_steps - step) / decay_steps
    return config.learning_rate * jnp.clip(jnp.minimum(warmup, decay), 0, 1)

  return schedule


def decay_mask(params):
  """Tells which parameters are decayed: all but biases and LayerNorms.

  Args:
    params: nested dict of arrays.

  Returns:
    Nested dict of bool, same structure.
  """

  def is_decayed(path, _):
    names = [entry.key for entry in path]
    return names[-1] != "bias" and "LayerNorm" not in names

  return jax.tree.map_with_path(is_decayed, params)


def clip_by_norm(max_norm):
  """Builds the clipping of gradients whose norm the step has computed.

  As `optax.clip_by_global_norm`, which would compute it once more.

  Args:
    max_norm: what a larger norm is scaled down to.

  Returns:
    optax GradientTransformation; `update` needs `grad_norm`.
  """

  def update(updates, state, params=None, *, grad_norm):
    scale = max_norm / jnp.maximum(grad_norm, max_norm)
    return jax.tree.map(lambda grad: grad * scale, updates), state

  return optax.GradientTransformationExtraArgs(
    lambda _: optax.EmptyState(), update
  )


def scale_by_adam(config):
  """Builds Adam's rule for the direction and size of an update.

  Args:
    config: `config.optimizer`. With bias_correction False the moments are
      used as they are, as in the original code: the first update is about
      (1 - beta1) / sqrt(1 - beta2) = 3.2 times as large as Adam's.

  Returns:
    optax GradientTransformation; the state is optax's `ScaleByAdamState`.
  """
  adam = optax.scale_by_adam(config.beta1, config.beta2, config.eps)
  if config.bias_correction:
    return adam

  def update(updates, state, params=None):
    _, state = adam.update(updates, state, params)
    updates = jax.tree.map(
      lambda mu, nu: mu / (jnp.sqrt(nu) + config.eps), state.mu, state.nu
    )
    return updates, state

  return optax.GradientTransformation(adam.init, update)


def create_optimizer(config, num_steps):
  """Builds the optimizer: clip, Adam, decoupled decay, rate.

  "lamb" adds a trust ratio per matrix (You et al. 2019, arXiv 1904.00962);
  like the decay, and as in its authors' code, it leaves out biases and
  LayerNorms. Moments are float32, as the parameters are.

  Args:
    config: `config.optimizer`.
    num_steps: length of the run.

  Returns:
    optax GradientTransformation; `update` needs the parameters and `grad_norm`,
    see `collectives.make_global_norm`.
  """
  rules = [
    clip_by_norm(config.max_grad_norm),
    scale_by_adam(config),
    optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
  ]
  if config.name == "lamb":
    rules.append(optax.masked(optax.scale_by_trust_ratio(), decay_mask))
  schedule = create_schedule(config, num_steps)
  return optax.chain(*rules, optax.scale_by_learning_rate(schedule))
