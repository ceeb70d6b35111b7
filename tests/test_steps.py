"""Claims about the train step: how it is spread changes nothing."""

import jax
import numpy as np
import pytest

from bert_jax import dropout, modeling, partitioning, steps
from bert_jax import run as run_lib
from bert_jax.config import default_config, num_train_steps

NUM_STEPS = 4


def small_config(**mesh):
  config = default_config()
  config.model.update(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=256,
    max_position_embeddings=32,
    dtype="float32",
  )
  config.corpus.vocab_size = 500
  config.phase1.update(
    max_seq_length=32, num_steps=100, batch_size=16, max_predictions=5
  )
  config.phase2.num_steps = 0
  config.optimizer.update(learning_rate=1e-3, warmup_steps=2)
  config.mesh.update(mesh)
  return config


def batches(config):
  rng = np.random.default_rng(0)
  for _ in range(NUM_STEPS):
    length = rng.integers(8, 33, 16, dtype=np.int32)
    yield {
      "input_ids": rng.integers(5, 500, (16, 32), dtype=np.uint16),
      "a_length": length // 2 - 1,
      "length": length,
      "next_sentence_labels": rng.integers(0, 2, 16, dtype=np.int32),
    }


def train(config, devices):
  """Returns the losses of a few steps and the last weights."""
  run = run_lib.create_planned_run(config, devices)
  state = run_lib.create_state(run)
  step = steps.make_train_step(
    config,
    config.phase1,
    run.bert_config,
    run.masking_vocab,
    run.optimizer,
    num_train_steps(config),
    run.mesh,
    state,
  )
  losses = []
  for batch in batches(config):
    batch = partitioning.global_batch(run.mesh, batch)
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"]))
  return losses, jax.device_get(state.params)


def as_on_a_tpu(patch):
  """Takes the ways that a TPU takes, but for the compiler's options."""
  patch.setattr(partitioning, "is_tpu", lambda mesh: True)
  patch.setattr(partitioning, "TPU_OPTIONS", {})


@pytest.mark.parametrize(
  "mesh",
  [{}, {"fsdp": 4}, {"model": 2, "fsdp": 2}],
  ids=["data", "fsdp", "all"],
)
def test_sixteen_devices_train_as_one_does(mesh):
  one, params = train(small_config(), jax.devices()[:1])
  many, params_of_many = train(small_config(**mesh), jax.devices())
  np.testing.assert_allclose(many, one, rtol=2e-5)
  jax.tree.map(
    # Adam turns the rounding of a gradient near 0 into a part of the rate.
    lambda a, b: np.testing.assert_allclose(a, b, atol=5e-4),
    params_of_many,
    params,
  )


def test_weights_rounded_once_train_as_float32_does():
  """The losses of both differ by bfloat16's rounding, and no more."""
  config = small_config()
  plain, _ = train(config, jax.devices()[:1])
  config.model.dtype = "bfloat16"
  with pytest.MonkeyPatch.context() as patch:
    as_on_a_tpu(patch)
    rounded, params = train(config, jax.devices())
  np.testing.assert_allclose(rounded, plain, rtol=5e-3)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {
    np.dtype("float32")
  }


def test_the_state_is_split_over_the_data_axis():
  run = run_lib.create_planned_run(small_config(), jax.devices())
  state = run_lib.create_state(run)
  table = state.params["bert"]["embeddings"]["word_embeddings"]
  for leaf in (table, *jax.tree.leaves(state.opt_state)):
    if partitioning.is_split(leaf):
      assert leaf.addressable_shards[0].data.size == leaf.size // 16


def test_hashed_masks_keep_their_share_in_every_row_and_column():
  keep = np.asarray(
    dropout.hashed_keep(jax.random.key(3), 0.1, (64, 12, 40, 40))
  )
  assert keep.mean() == pytest.approx(0.9, abs=4 * 0.3 / keep.size**0.5)
  for axis in range(keep.ndim):
    others = tuple(i for i in range(keep.ndim) if i != axis)
    error = 0.3 / (keep.size / keep.shape[axis]) ** 0.5
    assert np.abs(keep.mean(others) - 0.9).max() < 5 * error


def test_hashed_masks_of_other_keys_and_rows_are_unrelated():
  """No two masks agree more often than chance: 0.9^2 + 0.1^2."""
  keys = jax.random.split(jax.random.key(0), 8)
  masks = np.stack([dropout.hashed_keep(k, 0.1, (16, 4096)) for k in keys])
  masks = masks.reshape(128, 4096)
  agree = (masks[:, None] == masks[None]).mean(-1)
  pairs = agree[np.triu_indices(128, 1)]
  assert pairs.mean() == pytest.approx(0.82, abs=1e-3)
  assert np.abs(pairs - 0.82).max() < 6 * (0.82 * 0.18 / 4096) ** 0.5


def test_hashed_mask_does_not_depend_on_the_mesh():
  mesh = partitioning.create_mesh(default_config().mesh)
  draw = jax.jit(
    lambda key: dropout.hashed_keep(key, 0.1, (32, 8, 24)),
    out_shardings=partitioning.batch_sharding(mesh),
  )
  np.testing.assert_array_equal(
    draw(jax.random.key(1)),
    dropout.hashed_keep(jax.random.key(1), 0.1, (32, 8, 24)),
  )


def test_looking_up_a_rounded_table_adds_gradients_before_rounding():
  """256 times 1 + 1/128 in bfloat16 steps would stop growing."""
  table = np.zeros((4, 2), "bfloat16")
  ids = np.full((16, 16), 3)
  grad = jax.grad(
    lambda table: (modeling.look_up(table, ids) * (1 + 2**-7)).sum()
  )(jax.numpy.asarray(table))
  assert grad.dtype == table.dtype
  np.testing.assert_array_equal(grad[3], np.full(2, 258, "bfloat16"))
  assert not np.asarray(grad[:3]).any()
