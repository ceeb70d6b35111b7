"""Claims about the optimizer, against the formulas written out in numpy."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.config import default_config
from bert_jax.model import bert
from bert_jax.training import optimizer
from tests.closeness import REORDERED, assert_close

NUM_STEPS = 8


def settings(**changes):
  """Returns `config.optimizer` for a run of 8 steps."""
  config = default_config().optimizer
  config.update({"learning_rate": 0.01, "warmup_steps": 3, **changes})
  return config


def small_params(seed=0):
  rng = np.random.default_rng(seed)
  shapes = {
    "dense": {"kernel": (5, 3), "bias": (3,)},
    "heads": {"kernel": (3, 2, 4), "bias": (2, 4)},
    "LayerNorm": {"scale": (3,), "bias": (3,)},
  }
  return {
    module: {
      name: rng.normal(0, 1, shape).astype(np.float32)
      for name, shape in arrays.items()
    }
    for module, arrays in shapes.items()
  }


def run(config, params, gradients):
  """Returns the parameters after each step, flattened."""
  rule = optimizer.create_optimizer(config, NUM_STEPS)
  state, history = rule.init(params), []
  update = jax.jit(rule.update)
  for grads in gradients:
    norm = optax.tree.norm(grads)
    updates, state = update(grads, state, params, grad_norm=norm)
    params = optax.apply_updates(params, updates)
    history.append(flax.traverse_util.flatten_dict(params, sep="/"))
  return history


def run_numpy(config, params, gradients):
  """The same rule in float64, parameter by parameter."""
  flatten = flax.traverse_util.flatten_dict
  params = {k: np.float64(v) for k, v in flatten(params, sep="/").items()}
  m = {k: np.zeros_like(v) for k, v in params.items()}
  v = {k: np.zeros_like(x) for k, x in params.items()}
  history = []
  for step, grads in enumerate(gradients):
    grads = {k: np.float64(g) for k, g in flatten(grads, sep="/").items()}
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    scale = min(1.0, config.max_grad_norm / norm)
    if step < config.warmup_steps:
      rate = config.learning_rate * (step + 1) / config.warmup_steps
    else:
      rate = config.learning_rate * (NUM_STEPS - step)
      rate /= NUM_STEPS - config.warmup_steps
    new = {}
    for k, g in grads.items():
      m[k] = config.beta1 * m[k] + (1 - config.beta1) * g * scale
      v[k] = config.beta2 * v[k] + (1 - config.beta2) * (g * scale) ** 2
      m_hat, v_hat = m[k], v[k]
      if config.bias_correction:
        m_hat = m_hat / (1 - config.beta1 ** (step + 1))
        v_hat = v_hat / (1 - config.beta2 ** (step + 1))
      direction = m_hat / (np.sqrt(v_hat) + config.eps)
      if k in ("dense/kernel", "heads/kernel"):
        direction = direction + config.weight_decay * params[k]
        if config.name == "lamb":
          ratio = np.linalg.norm(params[k]) / np.linalg.norm(direction)
          direction = direction * ratio
      new[k] = params[k] - rate * direction
    params = new
    history.append(params)
  return history


@pytest.mark.parametrize("name", ["adamw", "lamb"])
@pytest.mark.parametrize("bias_correction", [True, False])
def test_updates_are_the_formula_with_clip_decay_and_schedule(
  name, bias_correction
):
  """Gradient norms around 1, some of them clipped and some not."""
  config = settings(
    name=name, bias_correction=bias_correction, weight_decay=0.1
  )
  gradients = [
    jax.tree.map(lambda x, scale=scale: x * scale, small_params(seed))
    for seed, scale in enumerate((0.05, 3.0, 0.1, 1.0, 0.02, 10.0, 0.1, 0.1))
  ]
  norms = [float(optax.tree.norm(grads)) for grads in gradients]
  assert min(norms) < 1 < max(norms)
  params = small_params(99)
  actual = run(config, params, gradients)
  expected = run_numpy(config, params, gradients)
  for ours, theirs in zip(actual, expected, strict=True):
    for path, value in theirs.items():
      assert_close(ours[path], value, REORDERED, path)


def test_clip_is_by_the_norm_of_all_gradients_not_by_its_square():
  """A gradient of norm 5 has norm 1 after the clip, not 1/5."""
  config = settings()
  params = {"a": {"kernel": jnp.ones((2,))}, "b": {"bias": jnp.ones((1,))}}
  grads = {
    "a": {"kernel": jnp.array([3.0, 0.0])},
    "b": {"bias": jnp.array([4.0])},
  }
  rule = optimizer.create_optimizer(config, NUM_STEPS)
  _, state = rule.update(grads, rule.init(params), params, grad_norm=5.0)
  adam = state[1]
  np.testing.assert_allclose(adam.mu["a"]["kernel"], [0.06, 0], rtol=1e-5)
  np.testing.assert_allclose(adam.mu["b"]["bias"], [0.08], rtol=1e-5)


def test_only_matrices_and_embeddings_are_decayed():
  """And neither biases nor LayerNorms."""
  config = bert.BertConfig(
    vocab_size=150, hidden_size=24, num_hidden_layers=1, num_attention_heads=3
  )
  params = jax.eval_shape(lambda: bert.create_params(config, jax.random.key(0)))
  mask = flax.traverse_util.flatten_dict(optimizer.decay_mask(params), sep="/")
  names = {path: path.rsplit("/", 1)[-1] for path in mask}
  for path, decayed in mask.items():
    expected = names[path] == "kernel" or names[path].endswith("_embeddings")
    assert decayed == expected, path
  assert sum(mask.values()) == 3 + 6 + 1 + 1 + 1


def test_decay_is_decoupled_from_the_gradient():
  """Without a gradient, matrices shrink by rate times decay; others stay."""
  config = settings(warmup_steps=0, weight_decay=0.1)
  params = small_params()
  zeros = jax.tree.map(np.zeros_like, params)
  (after,) = run(config, params, [zeros])
  before = flax.traverse_util.flatten_dict(params, sep="/")
  for path, value in after.items():
    factor = 1 - 0.01 * 0.1 if path.endswith("kernel") else 1
    np.testing.assert_allclose(value, before[path] * factor, rtol=1e-6)


def test_first_update_without_bias_correction_is_about_three_times_adams():
  params = small_params()
  grads = jax.tree.map(lambda x: 0.01 * np.sign(x), params)
  steps = []
  for bias_correction in (True, False):
    config = settings(
      bias_correction=bias_correction, weight_decay=0.0, eps=1e-12
    )
    (after,) = run(config, params, [grads])
    steps.append(after["dense/bias"] - params["dense"]["bias"])
  ratio = 0.1 / 0.001**0.5
  np.testing.assert_allclose(steps[1], ratio * steps[0], rtol=1e-3)


def test_schedule_rises_to_the_peak_and_falls_to_zero():
  config = default_config().optimizer
  schedule = optimizer.create_schedule(config, 1_000_000)
  expected = {
    0: 1e-8,
    4_999: 5e-5,
    9_999: 1e-4,
    10_000: 1e-4,
    505_000: 5e-5,
    999_999: 1e-4 / 990_000,
    1_000_000: 0,
    1_000_001: 0,
  }
  for step, rate in expected.items():
    assert float(schedule(step)) == pytest.approx(rate, rel=1e-5), step
    assert float(schedule(jnp.int32(step))) == pytest.approx(rate, rel=1e-5)


def test_schedule_has_no_jump():
  """No two steps differ by more than one step of the warm-up."""
  schedule = optimizer.create_schedule(
    settings(learning_rate=1.0, warmup_steps=100), 1_000
  )
  rates = np.asarray(schedule(np.arange(1_001)))
  assert np.abs(np.diff(rates)).max() < 1 / 100 + 1e-6
  assert rates.max() == 1


def test_schedule_without_warmup_starts_at_the_peak():
  schedule = optimizer.create_schedule(settings(warmup_steps=0), 10)
  assert float(schedule(0)) == pytest.approx(0.01)
  assert float(schedule(5)) == pytest.approx(0.005)


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_state_is_two_float32_moments_and_counters(name):
  params = small_params()
  rule = optimizer.create_optimizer(settings(name=name), NUM_STEPS)
  leaves = jax.tree.leaves(rule.init(params))
  arrays = [leaf for leaf in leaves if leaf.ndim]
  assert len(arrays) == 2 * len(jax.tree.leaves(params))
  assert {leaf.dtype for leaf in arrays} == {jnp.dtype("float32")}
  assert all(leaf.dtype == jnp.int32 for leaf in leaves if not leaf.ndim)
