"""THE train step: the same on any mesh, exact sums, nothing lost to a NaN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.config import default_config
from bert_jax.model import attention, matmul
from bert_jax.model.bert import create_bert_config, create_params
from bert_jax.pretraining.masking import create_masking_vocab
from bert_jax.pretraining.objective import create_objective
from bert_jax.sharding import compiler_options, devices, partitioning
from bert_jax.sharding import mesh as mesh_lib
from bert_jax.sharding import rows as rows_lib
from bert_jax.training import step as step_lib
from bert_jax.training import sums as sums_lib
from bert_jax.training.optimizer import create_optimizer, create_schedule
from bert_jax.training.train_state import create_train_state
from tests.closeness import REORDERED, assert_trees_close

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [
  f"w{i}" for i in range(195)
]
NUM_STEPS = 20


@pytest.fixture(autouse=True)
def _split_small_matrices(monkeypatch):
  """As the large ones of a real model are."""
  monkeypatch.setattr(partitioning, "MIN_SPLIT_SIZE", 64)


def _config(**overrides):
  config = default_config()
  config.update_from_flattened_dict(
    {
      "model.hidden_size": 32,
      "model.num_hidden_layers": 2,
      "model.num_attention_heads": 4,
      "model.intermediate_size": 64,
      "model.max_position_embeddings": 32,
      "model.dtype": "float32",
      "phase1.max_seq_length": 32,
      "phase1.batch_size": 16,
      "phase1.max_predictions": 5,
      "optimizer.learning_rate": 1e-3,
      "optimizer.warmup_steps": 2,
      **overrides,
    }
  )
  return config


def _batch(config, seed):
  """Random rows of different lengths, so that predictions are ragged."""
  rng = np.random.default_rng(seed)
  size, length = config.phase1.batch_size, config.phase1.max_seq_length
  a = rng.integers(1, 12, size)
  b = rng.integers(1, 12, size)
  ids = rng.integers(5, len(VOCAB), (size, length))
  rows = np.arange(size)
  ids[:, 0] = 2
  ids[rows, a + 1] = ids[rows, a + b + 2] = 3
  ids[np.arange(length)[None] >= (a + b + 3)[:, None]] = 0
  return {
    "input_ids": ids.astype(np.uint16),
    "a_length": a.astype(np.int32),
    "length": (a + b + 3).astype(np.int32),
    "next_sentence_labels": rng.integers(0, 2, size).astype(np.int32),
  }


def _objective(config):
  return create_objective(
    config,
    config.phase1,
    create_bert_config(config, len(VOCAB)),
    create_masking_vocab(VOCAB),
  )


def _start(config, mesh_sizes, num_devices):
  """Returns (state, train step, mesh) on the first devices."""
  config.mesh.update(dict(zip(mesh_lib.MESH_AXES, mesh_sizes, strict=True)))
  mesh = mesh_lib.create_mesh(config.mesh, jax.devices()[:num_devices])
  bert_config = create_bert_config(config, len(VOCAB))
  optimizer = create_optimizer(config.optimizer, NUM_STEPS)
  create = lambda key: create_train_state(  # noqa: E731
    create_params(bert_config, key), optimizer
  )
  abstract = jax.eval_shape(create, jax.random.key(0))
  shardings = partitioning.state_shardings(mesh, abstract, optimizer)
  state = jax.jit(create, out_shardings=shardings)(jax.random.key(0))
  train_step = step_lib.make_train_step(
    config,
    _objective(config),
    optimizer,
    create_schedule(config.optimizer, NUM_STEPS),
    mesh,
    abstract,
  )
  return state, train_step, mesh


@functools.cache
def _curve(
  mesh_sizes, num_devices, accumulation=1, dropout=0.1, dtype="float32"
):
  """Returns the metrics of the first steps and the parameters after them."""
  config = _config(
    **{
      "optimizer.grad_accumulation": accumulation,
      "model.hidden_dropout_prob": dropout,
      "model.attention_probs_dropout_prob": dropout,
      "model.dtype": dtype,
    }
  )
  state, train_step, mesh = _start(config, mesh_sizes, num_devices)
  rows = []
  for step in range(4):
    batch = rows_lib.global_batch(mesh, _batch(config, step))
    state, metrics = train_step(state, batch)
    rows.append({k: float(v) for k, v in metrics.items()})
  return rows, jax.device_get(state.params)


@pytest.fixture(scope="module", name="alone")
def _alone():
  """The metrics of the first steps on one device."""
  return _curve((1, 1, 1), 1)[0]


@pytest.mark.parametrize(
  "mesh_sizes",
  [
    (16, 1, 1),
    (8, 2, 1),
    (4, 1, 4),
    (4, 4, 1),
    pytest.param((2, 2, 4), marks=pytest.mark.slow),
    (1, 4, 4),
  ],
)
def test_the_same_seed_gives_the_same_curve_on_every_mesh(alone, mesh_sizes):
  """Examples, masks and dropout do not depend on where the rows lie."""
  spread, _ = _curve(mesh_sizes, int(np.prod(mesh_sizes)))
  for a, b in zip(alone, spread, strict=True):
    for name in a:
      np.testing.assert_allclose(b[name], a[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("mesh_sizes", [(16, 1, 1), (4, 1, 4), (2, 2, 4)])
def test_gradients_are_the_same_on_every_mesh(mesh_sizes):
  """Read from Adam's first moment after one step; predictions are ragged."""

  def gradients(mesh_sizes):
    config = _config()
    num_devices = int(np.prod(mesh_sizes))
    state, train_step, mesh = _start(config, mesh_sizes, num_devices)
    batch = rows_lib.global_batch(mesh, _batch(config, 0))
    state, _ = train_step(state, batch)
    moments = optax.tree_utils.tree_get(state.opt_state, "mu")
    return jax.device_get(moments)

  alone, spread = gradients((1, 1, 1)), gradients(mesh_sizes)
  assert_trees_close(spread, alone, REORDERED)


def _pretend_tpus(monkeypatch):
  """Makes the step take a TPU's way, its kernel interpreted."""
  monkeypatch.setattr(mesh_lib, "is_tpu", lambda mesh: True)
  monkeypatch.setattr(compiler_options, "TPU_OPTIONS", {})

  def platform():
    return "tpu" if jax.sharding.get_abstract_mesh().axis_names else None

  for module in (devices, matmul):
    monkeypatch.setattr(module, "platform", platform)
  kernel = attention.fused_attention
  monkeypatch.setattr(
    attention, "fused_attention", lambda *args: kernel(*args, interpret=True)
  )


@pytest.mark.parametrize(
  "mesh_sizes, dtype, tolerance",
  [
    ((1, 2, 2), "float32", 1e-5),
    pytest.param((2, 1, 2), "float32", 1e-5, marks=pytest.mark.slow),
    ((4, 1, 1), "bfloat16", 5e-3),
  ],
)
def test_a_tpus_step_trains_as_the_plain_float32_step_does(
  monkeypatch, mesh_sizes, dtype, tolerance
):
  """With the same dropout masks, to the rounding of its dtype."""
  plain, _ = _curve((1, 1, 1), 1)
  _pretend_tpus(monkeypatch)
  fast, params = _curve.__wrapped__(mesh_sizes, 4, dtype=dtype)
  for a, b in zip(plain, fast, strict=True):
    assert b["loss"] == pytest.approx(a["loss"], rel=tolerance)
    assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=4 * tolerance)
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_accumulated_gradients_are_those_of_the_whole_batch():
  """Sums of sums, not means of means: predictions are ragged here."""
  whole, params = _curve((1, 1, 1), 1, dropout=0.0)
  parts, parts_params = _curve((1, 1, 1), 1, accumulation=4, dropout=0.0)
  for a, b in zip(whole, parts, strict=True):
    for name in a:
      np.testing.assert_allclose(b[name], a[name], rtol=2e-5, err_msg=name)
  # Of moves of 1e-3 a step; Adam makes moves of roundings, too.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(b, a, rtol=0, atol=2e-5),
    params,
    parts_params,
  )


def test_gradients_of_many_micro_batches_add_up_in_float32():
  """In bfloat16 the sum of 1,024 ones would stop at 256."""
  objective = step_lib.Objective(
    make_inputs=None,
    loss_weights=lambda inputs: {"loss": jnp.float32(1)},
    sums=lambda params, inputs, key: {
      "loss": ((params[None] * inputs).astype("float32").sum(), jnp.float32(1))
    },
    dtype="bfloat16",
    head_size=1,
  )
  grads, sums = step_lib._accumulate_gradients(
    objective,
    jnp.ones(3, jnp.bfloat16),
    jnp.ones((1024, 3), jnp.bfloat16),
    jax.random.key(0),
    1024,
    (),
  )
  np.testing.assert_array_equal(np.asarray(grads, np.float32), 1024)
  assert grads.dtype == jnp.bfloat16
  assert sums["loss"][0] == 3 * 1024


def test_the_loss_is_the_sum_of_both_and_the_rate_is_the_schedules():
  rows, _ = _curve((1, 1, 1), 1)
  for row in rows:
    assert row["loss"] == pytest.approx(row["mlm_loss"] + row["nsp_loss"])
  rates = [row["learning_rate"] for row in rows]
  expected = [0.5e-3, 1e-3, 1e-3, 1e-3 * 17 / 18]
  np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_a_step_that_is_not_finite_changes_nothing_but_the_count():
  config = _config()
  state, train_step, mesh = _start(config, (1, 1, 1), 1)
  words = state.params["bert"]["embeddings"]["word_embeddings"]
  poisoned = state.params | {
    "bert": state.params["bert"]
    | {
      "embeddings": state.params["bert"]["embeddings"]
      | {"word_embeddings": words.at[7, 0].set(jnp.inf)}
    }
  }
  state = state.replace(params=poisoned)
  before = jax.device_get(state)
  batch = _batch(config, 0)
  batch["input_ids"][:, 1] = 7
  state, metrics = train_step(state, rows_lib.global_batch(mesh, batch))
  after = jax.device_get(state)
  assert after.step == 1 and after.skipped_steps == 1
  assert float(metrics["skipped_steps"]) == 1
  jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
  adam = [
    jax.tree.leaves(state.opt_state, is_leaf=_is_adam)
    for state in (before, after)
  ]
  (before_adam,), (after_adam,) = (filter(_is_adam, found) for found in adam)
  jax.tree.map(np.testing.assert_array_equal, before_adam, after_adam)


def _is_adam(node):
  return isinstance(node, optax.ScaleByAdamState)


def test_the_rate_of_an_update_follows_the_step_after_steps_without_one():
  """Adam's first update is +-1 times the rate: 1.0 of the peak at step 1."""
  config = _config(**{"optimizer.weight_decay": 0.0, "optimizer.eps": 1e-12})
  state, train_step, mesh = _start(config, (1, 1, 1), 1)
  start = jax.device_get(state.params)
  broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.params)
  for step in range(11):
    batch = rows_lib.global_batch(mesh, _batch(config, step))
    state, metrics = train_step(state.replace(params=broken), batch)
    broken = state.params
  assert int(state.skipped_steps) == 11
  state, metrics = train_step(
    state.replace(params=jax.tree.map(jnp.array, start)),
    rows_lib.global_batch(mesh, _batch(config, 11)),
  )
  moved = np.abs(
    np.asarray(state.params["bert"]["pooler"]["dense"]["kernel"])
    - start["bert"]["pooler"]["dense"]["kernel"]
  )
  rate = float(metrics["learning_rate"])
  assert rate == pytest.approx(1e-3 * (20 - 11) / 18)
  np.testing.assert_allclose(np.median(moved), rate, rtol=1e-2)


def test_evaluation_masks_depend_on_the_example_alone():
  """Two runs of other seeds and batch sizes are measured on the same masks."""
  totals = []
  for seed, size in ((0, 16), (1, 16), (0, 4)):
    config = _config(seed=seed)
    state, _, mesh = _start(_config(), (1, 1, 1), 1)
    eval_step = step_lib.make_eval_step(_objective(config), mesh, state.params)
    rows = [_batch(config, number) for number in range(2)]
    rows = {k: np.concatenate([batch[k] for batch in rows]) for k in rows[0]}
    total = None
    for number in range(32 // size):
      part = {k: v[number * size :][:size] for k, v in rows.items()}
      batch = rows_lib.global_batch(mesh, part)
      total = sums_lib.add(total, eval_step(state.params, batch, number))
    totals.append({k: float(v) for k, (v, _) in total.items()})
  assert totals[0] == totals[1]
  for name, value in totals[0].items():
    assert totals[2][name] == pytest.approx(value, rel=1e-5), name


def test_evaluation_masks_differ_among_examples():
  config = _config()
  state, _, mesh = _start(config, (1, 1, 1), 1)
  eval_step = step_lib.make_eval_step(_objective(config), mesh, state.params)
  batch = rows_lib.global_batch(mesh, _batch(config, 0))
  losses = [
    float(eval_step(state.params, batch, n)["mlm_loss"][0]) for n in (0, 1)
  ]
  assert losses[0] != losses[1]
