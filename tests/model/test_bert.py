"""Claims about the model, most of them against transformers."""

import dataclasses
import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from bert_jax.config import default_config
from bert_jax.model import attention, bert, encoder
from bert_jax.model.bert import BertConfig, BertForPreTraining, BertModel
from bert_jax.model.dropout import draw_attention_keep
from bert_jax.pretraining import losses
from bert_jax.training import sums as sums_lib
from bert_jax.weights import hf
from tests.closeness import (
  OTHER_LIBRARY,
  REORDERED,
  assert_close,
  assert_trees_close,
)

# No two sizes are equal, so that no transposed array fits by accident.
SMALL = BertConfig(
  vocab_size=150,
  hidden_size=24,
  num_hidden_layers=2,
  num_attention_heads=3,
  intermediate_size=40,
  max_position_embeddings=32,
)
A_LENGTH = np.array([3, 9, 1, 5], np.int32)
LENGTH = np.array([9, 20, 3, 14], np.int32)
MAX_LENGTH = 20


create_params = jax.jit(bert.create_params, static_argnums=0)


def random_params(config, seed=0):
  """Draws every weight, also biases and scales, away from its initial value."""
  rng = np.random.default_rng(seed)

  def draw(path, weight):
    mean = 1 if path[-1].key == "scale" else 0
    return rng.normal(mean, 0.3, weight.shape).astype(np.float32)

  return jax.tree.map_with_path(
    draw,
    jax.eval_shape(lambda: bert.create_params(config, jax.random.key(0))),
  )


def random_batch(config, seed=0):
  """Makes four rows of different lengths, three predictions in each."""
  rng = np.random.default_rng(seed)
  token_type_ids, attention_mask = bert.segment_inputs(
    A_LENGTH, LENGTH, MAX_LENGTH
  )
  ids = rng.integers(5, config.vocab_size, (4, MAX_LENGTH), dtype=np.int32)
  return {
    "input_ids": np.where(attention_mask, ids, 0),
    "token_type_ids": np.array(token_type_ids),
    "attention_mask": np.array(attention_mask),
    "masked_lm_positions": np.array(
      [[1, 4, 7], [2, 11, 18], [1, 0, 0], [3, 8, 0]], np.int32
    ),
    "masked_lm_ids": rng.integers(5, config.vocab_size, (4, 3), np.int32),
    "masked_lm_weights": np.array(
      [[1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 1, 0]], np.float32
    ),
    "next_sentence_labels": np.array([0, 1, 1, 0], np.int32),
  }


@functools.partial(jax.jit, static_argnums=0)
def apply(config, params, batch):
  """Returns the logits of a batch, without dropout."""
  return BertForPreTraining(config).apply(
    {"params": params},
    batch["input_ids"],
    batch["token_type_ids"],
    batch["attention_mask"],
    batch["masked_lm_positions"],
    deterministic=True,
  )


def encode(config, params, batch, seed=0):
  """Returns the hidden states and the pooled output, with dropout."""
  return BertModel(config).apply(
    {"params": params["bert"]},
    batch["input_ids"],
    batch["token_type_ids"],
    batch["attention_mask"],
    deterministic=False,
    rngs={"dropout": jax.random.key(seed)},
  )


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.value_and_grad, argnums=1)
def loss_and_grads(config, params, batch):
  sums = losses.pretraining_sums(*apply(config, params, batch), batch)
  return sums_lib.divide(sums["mlm_loss"]) + sums_lib.divide(sums["nsp_loss"])


def create_torch_model(config, params):
  fields = {name: getattr(config, name) for name in hf.SHARED_FIELDS}
  model = transformers.BertForPreTraining(
    transformers.BertConfig(**fields, attn_implementation="eager")
  )
  tensors = {
    name: torch.tensor(tensor)
    for name, tensor in hf.to_hf(params, config, "pretraining").items()
  }
  missing, unexpected = model.load_state_dict(tensors, strict=False)
  assert not unexpected
  assert all(name.startswith("cls.predictions.decoder.") for name in missing)
  return model.eval()


def apply_torch(model, batch):
  labels = np.full(batch["input_ids"].shape, -100, np.int64)
  for row, column in zip(*np.nonzero(batch["masked_lm_weights"]), strict=True):
    position = batch["masked_lm_positions"][row, column]
    labels[row, position] = batch["masked_lm_ids"][row, column]
  return model(
    input_ids=torch.from_numpy(batch["input_ids"]).long(),
    token_type_ids=torch.from_numpy(batch["token_type_ids"]).long(),
    attention_mask=torch.from_numpy(batch["attention_mask"]).long(),
    labels=torch.from_numpy(labels),
    next_sentence_label=torch.from_numpy(batch["next_sentence_labels"]).long(),
  )


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new"])
def test_logits_loss_and_all_gradients_are_those_of_transformers(hidden_act):
  config = dataclasses.replace(SMALL, hidden_act=hidden_act)
  params, batch = random_params(config), random_batch(config)
  model = create_torch_model(config, params)
  output = apply_torch(model, batch)
  output.loss.backward()

  mlm_logits, nsp_logits = apply(config, params, batch)
  expected = np.take_along_axis(
    output.prediction_logits.detach().numpy(),
    batch["masked_lm_positions"][:, :, None],
    axis=1,
  )
  assert_close(mlm_logits[..., : config.vocab_size], expected, OTHER_LIBRARY)
  assert_close(
    nsp_logits, output.seq_relationship_logits.detach().numpy(), OTHER_LIBRARY
  )

  loss, grads = loss_and_grads(config, params, batch)
  assert_close(loss, output.loss.item(), OTHER_LIBRARY)
  # The layouts are linear, so they map gradients as they map weights.
  grads = hf.to_hf(grads, config, "pretraining")
  torch_grads = {
    name: weight.grad.numpy() for name, weight in model.named_parameters()
  }
  assert_trees_close(grads, torch_grads, OTHER_LIBRARY)


def test_the_two_gelus_differ():
  """Else the comparison above could not tell them apart."""
  batch, params = random_batch(SMALL), random_params(SMALL)
  tanh = dataclasses.replace(SMALL, hidden_act="gelu_new")
  (exact, _), (approximate, _) = (
    apply(config, params, batch) for config in (SMALL, tanh)
  )
  difference = np.abs(exact - approximate).max()
  assert difference > 2e-4 * np.abs(exact[..., : SMALL.vocab_size]).max()


@pytest.mark.parametrize(
  ("sizes", "millions"),
  [
    ({}, 110),
    (
      {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
      },
      336,
    ),
  ],
  ids=["base", "large"],
)
def test_parameter_count_is_that_of_transformers(sizes, millions):
  config = BertConfig(vocab_size=30_522, **sizes)
  shapes = jax.eval_shape(lambda: bert.create_params(config, jax.random.key(0)))
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  padding = (config.padded_vocab_size - config.vocab_size) * (
    config.hidden_size + 1
  )
  with torch.device("meta"):
    model = transformers.BertForPreTraining(
      transformers.BertConfig(vocab_size=30_522, **sizes)
    )
  assert count - padding == sum(p.numel() for p in model.parameters())
  assert round((count - padding) / 1e6) == millions


def test_padding_does_not_leak():
  """Changing tokens behind the mask must not change any visible output."""
  params, batch = random_params(SMALL), random_batch(SMALL)
  rng = np.random.default_rng(1)
  noise = rng.integers(0, 150, batch["input_ids"].shape, np.int32)
  visible = batch["attention_mask"]
  changed = batch | {"input_ids": np.where(visible, batch["input_ids"], noise)}
  assert (changed["input_ids"] != batch["input_ids"]).any()
  mlm, nsp = apply(SMALL, params, batch)
  changed_mlm, changed_nsp = apply(SMALL, params, changed)
  np.testing.assert_array_equal(mlm, changed_mlm)
  np.testing.assert_array_equal(nsp, changed_nsp)


def test_longer_padding_changes_nothing():
  params, batch = random_params(SMALL), random_batch(SMALL)
  wider = {
    key: np.pad(batch[key], ((0, 0), (0, 5)))
    for key in ("input_ids", "token_type_ids", "attention_mask")
  }
  for short, long in zip(
    apply(SMALL, params, batch),
    apply(SMALL, params, batch | wider),
    strict=True,
  ):
    assert_close(short, long, REORDERED)


def test_row_of_padding_stays_finite():
  params, batch = random_params(SMALL), random_batch(SMALL)
  empty = batch | {"attention_mask": np.zeros_like(batch["attention_mask"])}
  for logits in apply(SMALL, params, empty):
    assert np.isfinite(logits).all()


def test_every_weight_takes_part_in_the_output():
  """Key biases alone do not: they shift all scores of a query alike."""
  params, batch = random_params(SMALL), random_batch(SMALL)
  _, grads = loss_and_grads(SMALL, params, batch)
  flat = flax.traverse_util.flatten_dict(grads, sep="/")
  idle = [path for path, grad in flat.items() if np.abs(grad).max() < 1e-6]
  assert [path for path in idle if not path.endswith("key/bias")] == []


def test_initial_weights_are_a_normal_cut_at_two_sigma():
  config = BertConfig(vocab_size=1000, num_hidden_layers=1)
  params = create_params(config, jax.random.key(0))
  flat = flax.traverse_util.flatten_dict(params, sep="/")
  for path, value in flat.items():
    name = path.rsplit("/", 1)[-1]
    if name == "bias":
      assert not value.any(), path
    elif name == "scale":
      assert (value == 1).all(), path
    else:
      drawn = value[:1000] if name == "word_embeddings" else value
      assert np.abs(drawn).max() <= 0.04, path
      # 0.88 sigma; four standard errors.
      error = 4 * 0.0176 / (2 * drawn.size) ** 0.5
      assert abs(drawn.std() - 0.0176) < error + 1e-5, path


def test_dimensions_are_padded_with_zero_rows():
  params = create_params(SMALL, jax.random.key(0))
  table = params["bert"]["embeddings"]["word_embeddings"]
  assert table.shape == (256, 24)
  assert table[:150].any(axis=1).all()
  assert not table[150:].any()


def test_padding_entries_are_never_predicted_and_never_trained():
  """Even where padding rows and biases are large."""
  params, batch = random_params(SMALL), random_batch(SMALL)
  params["cls"]["predictions"]["bias"] = jnp.full((256,), 1e4)
  mlm_logits, _ = apply(SMALL, params, batch)
  assert (mlm_logits[..., 150:] == bert.NEVER).all()
  _, grads = loss_and_grads(SMALL, params, batch)
  assert not grads["bert"]["embeddings"]["word_embeddings"][150:].any()
  assert not grads["cls"]["predictions"]["bias"][150:].any()


def test_head_scores_the_positions_it_is_given():
  params, batch = random_params(SMALL), random_batch(SMALL)
  every = np.tile(np.arange(MAX_LENGTH, dtype=np.int32), (4, 1))
  full, _ = apply(SMALL, params, batch | {"masked_lm_positions": every})
  some, _ = apply(SMALL, params, batch)
  expected = np.take_along_axis(
    np.asarray(full), batch["masked_lm_positions"][:, :, None], axis=1
  )
  assert_close(some, expected, REORDERED)


def test_bfloat16_stays_close_to_float32():
  config = dataclasses.replace(SMALL, dtype="bfloat16")
  params, batch = random_params(SMALL), random_batch(SMALL)
  for half, full in zip(
    apply(config, params, batch), apply(SMALL, params, batch), strict=True
  ):
    assert half.dtype == jnp.float32
    real = full > bert.NEVER
    scale = np.abs(full[real]).max()
    assert 0 < np.abs(half - full)[real].max() < 0.05 * scale


def test_parameters_are_float32_whatever_the_arithmetic():
  config = dataclasses.replace(SMALL, dtype="bfloat16")
  params = create_params(config, jax.random.key(0))
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {
    jnp.dtype("float32")
  }


def test_attention_scores_and_softmax_are_float32():
  """Whatever the layers compute in: bfloat16 would round a score of 40 by 1/8.

  Query and key are exact in bfloat16, so float64 says what comes out but for
  the rounding of the probabilities and the result.
  """
  rng = np.random.default_rng(0)
  shape = 2, 16, 3, 8
  query, key, value = (
    rng.normal(0, scale, shape).astype(jnp.bfloat16) for scale in (6, 6, 1)
  )
  wide = [np.asarray(x, np.float64) for x in (query, key, value)]
  scores = np.einsum("blnh,bmnh->bnlm", *wide[:2]) / 8**0.5
  assert np.abs(scores).max() > 40
  odds = np.exp(scores - scores.max(-1, keepdims=True))
  probs = odds / odds.sum(-1, keepdims=True)
  expected = np.einsum("bnlm,bmnh->blnh", probs, wide[2])
  out = attention.plain_attention(
    *[jnp.asarray(x).reshape(2, 16, 24) for x in (query, key, value)],
    jnp.ones((2, 16), bool),
    3,
    0.0,
    None,
  )
  assert out.dtype == jnp.bfloat16
  error = np.asarray(out, np.float64) - expected.reshape(2, 16, 24)
  assert np.abs(error).max() < 3 * 2**-9 * np.abs(wide[2]).max()


def test_dropout_zeroes_its_rate_and_keeps_the_mean():
  x = jnp.full((400, 500), 2.0)
  (seeds,) = bert.draw_seeds(jax.random.key(0), 1, len(x))
  y = bert.dropout(x, 0.1, seeds)
  # Four standard errors of 200,000 draws.
  assert float((y == 0).mean()) == pytest.approx(0.1, abs=0.0027)
  np.testing.assert_allclose(y[y != 0], 2 / 0.9, rtol=1e-6)
  assert bert.dropout(x, 0.1, None) is x


@pytest.mark.parametrize(
  "rate", ["hidden_dropout_prob", "attention_probs_dropout_prob"]
)
def test_each_dropout_rate_acts(rate):
  """Alone, a rate changes the output; with both at zero nothing does."""
  still = dataclasses.replace(
    SMALL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
  )
  params, batch = random_params(SMALL), random_batch(SMALL)

  @functools.partial(jax.jit, static_argnums=0)
  def last(config, seed):
    hidden_states, _ = encode(config, params, batch, seed)
    return hidden_states[-1]

  noisy = dataclasses.replace(still, **{rate: 0.1})
  np.testing.assert_array_equal(last(still, 0), last(still, 1))
  np.testing.assert_array_equal(last(noisy, 0), last(noisy, 0))
  assert (last(noisy, 0) != last(noisy, 1)).any()


def test_layer_norm_has_the_papers_epsilon():
  """Entries of 1e-6, which any other epsilon would scale otherwise."""
  x = np.random.default_rng(0).normal(0, 1e-6, (5, 24)).astype(np.float32)
  ours, _ = encoder.create_layer_norm(SMALL).init_with_output(
    jax.random.key(0), x
  )
  theirs = torch.nn.functional.layer_norm(torch.tensor(x), (24,), eps=1e-12)
  assert_close(ours, theirs.numpy(), OTHER_LIBRARY)


@pytest.mark.slow
def test_remat_gives_the_same_gradients_and_stores_fewer_activations():
  """With dropout, whose masks must be the same when recomputed."""
  params, batch = random_params(SMALL), random_batch(SMALL)

  def loss(params, config):
    hidden_states, pooled = encode(config, params, batch)
    return (hidden_states[-1] ** 2).mean() + pooled.mean()

  again = dataclasses.replace(SMALL, remat=True)
  step = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  assert_trees_close(step(params, again), step(params, SMALL), REORDERED)

  def kept(config):
    _, transpose = jax.vjp(lambda params: loss(params, config), params)
    return sum(leaf.size for leaf in jax.tree.leaves(transpose))

  assert kept(again) < 0.25 * kept(SMALL)


def test_no_two_dropouts_share_their_bits_and_each_has_its_rate():
  """Three a block and one on the embeddings, all different.

  Those on attention's probabilities have a rate of their own.
  """
  config = dataclasses.replace(
    SMALL, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3
  )
  params, batch = random_params(config), random_batch(config)
  drawn, rates, attention_rates = [], [], []

  def record(x, rate, seeds):
    drawn.append(tuple(seeds.ravel().tolist()))
    rates.append(rate)
    return x

  def record_attention(seeds, rate, num_heads, length):
    drawn.append(tuple(seeds.ravel().tolist()))
    attention_rates.append(rate)
    return draw_attention_keep(seeds, rate, num_heads, length)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(bert, "dropout", record)
    patch.setattr(encoder, "dropout", record)
    patch.setattr(attention, "draw_attention_keep", record_attention)
    encode(config, params, batch)
  assert len(set(drawn)) == len(drawn) == 1 + 3 * SMALL.num_hidden_layers
  assert rates == [0.2] * (1 + 2 * SMALL.num_hidden_layers)
  assert attention_rates == [0.3] * SMALL.num_hidden_layers


def test_body_alone_returns_every_layer_and_can_go_without_pooler():
  params, batch = random_params(SMALL), random_batch(SMALL)
  inputs = (
    batch["input_ids"],
    batch["token_type_ids"],
    batch["attention_mask"],
  )
  model = create_torch_model(SMALL, params).bert
  expected = model(
    *(torch.from_numpy(inputs[i]).long() for i in (0, 2, 1)),
    output_hidden_states=True,
  )
  hidden_states, pooled = BertModel(SMALL).apply(
    {"params": params["bert"]}, *inputs, deterministic=True
  )
  visible = batch["attention_mask"]
  assert len(hidden_states) == len(expected.hidden_states) == 3
  for ours, theirs in zip(hidden_states, expected.hidden_states, strict=True):
    assert_close(ours[visible], theirs.detach().numpy()[visible], OTHER_LIBRARY)
  assert_close(pooled, expected.pooler_output.detach().numpy(), OTHER_LIBRARY)

  bare = BertModel(SMALL, add_pooling_layer=False)
  variables = bare.init(jax.random.key(0), *inputs, deterministic=True)
  assert set(variables["params"]) == {"embeddings", "encoder"}
  assert bare.apply(variables, *inputs, deterministic=True)[1] is None


def test_segments_and_mask_follow_from_the_lengths():
  """[CLS] A A [SEP] B [SEP] . .; a row without B; a full row."""
  token_type_ids, attention_mask = bert.segment_inputs(
    jnp.array([2, 3, 1]), jnp.array([6, 5, 8]), 8
  )
  assert token_type_ids.dtype == jnp.int32
  assert token_type_ids.tolist() == [
    [0, 0, 0, 0, 1, 1, 0, 0],
    [0, 0, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 1, 1, 1, 1, 1],
  ]
  assert attention_mask.sum(axis=1).tolist() == [6, 5, 8]
  assert attention_mask[0].tolist() == [True] * 6 + [False] * 2


def test_settings_become_the_architecture():
  config = default_config()
  config.model.hidden_act = "gelu_new"
  assert bert.create_bert_config(config, 30_522) == BertConfig(
    vocab_size=30_522, hidden_act="gelu_new", dtype="bfloat16"
  )


@pytest.mark.parametrize(
  ("vocab_size", "padded"), [(30_522, 30_592), (128, 128), (129, 256)]
)
def test_vocabulary_is_padded_to_lanes(vocab_size, padded):
  assert BertConfig(vocab_size=vocab_size).padded_vocab_size == padded


def test_looking_up_a_rounded_table_adds_gradients_before_rounding():
  """256 times 1 + 1/128 in bfloat16 steps would stop growing."""
  table = np.zeros((1, 4, 2), "bfloat16")
  ids = np.full((16, 16), 3)
  grad = jax.grad(lambda table: (bert.look_up(table, ids) * (1 + 2**-7)).sum())(
    jnp.asarray(table)
  )
  assert grad.dtype == table.dtype
  np.testing.assert_array_equal(grad[0, 3], np.full(2, 258, "bfloat16"))
  assert not np.asarray(grad[0, :3]).any()


def test_parts_of_a_batch_with_copies_of_a_table_look_up_the_same():
  """Each copy gets the gradient of its own rows."""
  rng = np.random.default_rng(0)
  table = jnp.asarray(rng.normal(size=(7, 3)), jnp.float32)
  ids = rng.integers(0, 7, (6, 5))
  weights = jnp.asarray(rng.normal(size=(6, 5, 3)), jnp.float32)
  copies = jnp.stack([table, table])
  np.testing.assert_array_equal(bert.look_up(copies, ids), table[ids])
  grad = jax.grad(lambda copies: (bert.look_up(copies, ids) * weights).sum())(
    copies
  )
  for part, rows in enumerate((slice(0, 3), slice(3, 6))):
    expected = np.zeros((7, 3))
    np.add.at(expected, ids[rows], weights[rows])
    assert_close(grad[part], expected, REORDERED)
