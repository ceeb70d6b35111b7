"""The sharding table against the real parameter trees."""

import jax
import ml_collections
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from bert_jax.config import default_config
from bert_jax.errors import UserError
from bert_jax.model.bert import BertConfig, create_params
from bert_jax.sharding import collectives, partitioning
from bert_jax.sharding import mesh as mesh_lib
from bert_jax.sharding import rows as rows_lib
from bert_jax.training.optimizer import create_optimizer
from bert_jax.training.train_state import create_train_state


def _mesh(data, fsdp, model):
  sizes = ml_collections.ConfigDict(
    {"data": data, "fsdp": fsdp, "model": model}
  )
  return mesh_lib.create_mesh(sizes)


def _abstract_params(layers=2):
  config = BertConfig(vocab_size=30_000, num_hidden_layers=layers)
  return jax.eval_shape(lambda: create_params(config, jax.random.key(0)))


def test_every_parameter_matches_exactly_one_row():
  """Else `param_shardings` raises; and no row of the table is dead."""
  params = _abstract_params()
  partitioning.param_shardings(_mesh(16, 1, 1), params)
  paths = [
    ("/".join(entry.key for entry in path), leaf.shape)
    for path, leaf in jax.tree.leaves_with_path(params)
  ]
  used = {partitioning.param_axes(path, shape) for path, shape in paths}
  assert used == {axes for _, axes in partitioning.PARAM_AXES}


def test_a_parameter_outside_the_table_is_named():
  with pytest.raises(ValueError, match=r"bert/new/kernel .* matches 0 rows"):
    partitioning.param_axes("bert/new/kernel", (2, 2))


def test_model_parallelism_splits_heads_feed_forward_and_vocabulary():
  params = partitioning.gathered_shardings(_mesh(2, 2, 4), _abstract_params())
  layer = params["bert"]["encoder"]["layer_0"]
  specs = {
    "words": params["bert"]["embeddings"]["word_embeddings"].spec,
    "query": layer["attention"]["self"]["query"]["kernel"].spec,
    "mix": layer["attention"]["output"]["dense"]["kernel"].spec,
    "wide": layer["intermediate"]["dense"]["kernel"].spec,
    "narrow": layer["output"]["dense"]["kernel"].spec,
    "norm": layer["output"]["LayerNorm"]["scale"].spec,
  }
  assert specs == {
    "words": PartitionSpec("model", "fsdp"),
    "query": PartitionSpec("fsdp", "model"),
    "mix": PartitionSpec("model", "fsdp"),
    "wide": PartitionSpec("fsdp", "model"),
    "narrow": PartitionSpec("model", "fsdp"),
    "norm": PartitionSpec(None),
  }


def test_weights_and_moments_are_split_over_the_data_axis_between_steps():
  params = _abstract_params()
  optimizer = create_optimizer(default_config().optimizer, 100_000)
  state = jax.eval_shape(lambda p: create_train_state(p, optimizer), params)
  shardings = partitioning.state_shardings(_mesh(16, 1, 1), state, optimizer)

  def bytes_on_one_device(shapes, shardings):
    sizes = jax.tree.map(
      lambda leaf, sharding: np.prod(sharding.shard_shape(leaf.shape)) * 4,
      shapes,
      shardings,
    )
    return sum(jax.tree.leaves(sizes))

  whole = sum(leaf.size * 4 for leaf in jax.tree.leaves(params))
  kept = bytes_on_one_device(params, shardings.params)
  assert kept < whole / 16 * 1.05
  moments = bytes_on_one_device(state.opt_state, shardings.opt_state)
  assert moments < 2 * whole / 16 * 1.05


@pytest.mark.parametrize("sizes", [(16, 1, 1), (2, 2, 4)])
def test_the_norm_is_that_of_all_gradients(sizes):
  config = BertConfig(
    150, 48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
  )
  grads = create_params(config, jax.random.key(0))
  mesh = _mesh(*sizes)
  norm = jax.jit(
    collectives.make_global_norm(mesh, grads),
    in_shardings=(partitioning.param_shardings(mesh, grads),),
  )
  everything = np.concatenate(
    [np.ravel(leaf) for leaf in jax.tree.leaves(grads)]
  )
  expected = np.linalg.norm(everything.astype(np.float64))
  assert float(norm(grads)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (4, 4, 4)])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes):
  with pytest.raises(UserError, match="16, the number of devices"):
    _mesh(*sizes)


def test_minus_one_takes_the_devices_that_are_left():
  assert _mesh(-1, 2, 2).devices.shape == (4, 2, 2)


def test_a_batch_that_does_not_divide_is_refused():
  with pytest.raises(UserError, match=r"phase1.batch_size .* multiple of 8"):
    rows_lib.check_batch_size(_mesh(4, 2, 2), "phase1.batch_size", 12)


def test_heads_that_do_not_divide_are_refused():
  with pytest.raises(
    UserError, match=r"config.mesh.model is 16, .* 12 attention heads"
  ):
    mesh_lib.check_heads(_mesh(1, 1, 16), 12)
