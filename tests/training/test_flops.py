"""Claims about the FLOP count."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import pytest

from bert_jax.model.bert import BertConfig, BertForPreTraining, create_params
from bert_jax.training import flops

BASE = BertConfig(vocab_size=30_522)


@pytest.mark.parametrize(
  ("batch_size", "length", "predictions", "expected"),
  [
    (256, 128, 20, 17.90e12),
    (256, 512, 76, 77.02e12),
    (4096, 128, 20, 286.4e12),
  ],
)
def test_base_costs_the_known_number(batch_size, length, predictions, expected):
  count = flops.count_train_flops(BASE, batch_size, length, predictions)
  assert count == pytest.approx(expected, rel=5e-4)


def test_forward_pass_is_what_the_compiler_counts():
  """The compiler also counts the elementwise work: a few percent more."""
  config = BertConfig(
    vocab_size=1280,
    hidden_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=1024,
  )
  batch_size, length, predictions = 4, 128, 20
  ids = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
  mask = jax.ShapeDtypeStruct((batch_size, length), jnp.bool_)
  positions = jax.ShapeDtypeStruct((batch_size, predictions), jnp.int32)
  params = jax.eval_shape(lambda: create_params(config, jax.random.key(0)))

  def forward(params, ids, types, mask, positions):
    model = BertForPreTraining(config)
    return model.apply(
      {"params": params}, ids, types, mask, positions, deterministic=True
    )

  lowered = jax.jit(forward).lower(params, ids, ids, mask, positions)
  executed = lowered.compile().cost_analysis()["flops"]
  counted = flops.count_train_flops(config, batch_size, length, predictions) / 3
  assert counted < executed < 1.1 * counted


def test_head_is_counted_at_the_real_vocabulary():
  wider = dataclasses.replace(BASE, vocab_size=30_521)
  difference = flops.count_train_flops(
    BASE, 256, 128, 20
  ) - flops.count_train_flops(wider, 256, 128, 20)
  assert difference == 6 * 256 * 20 * 768


def test_peak_is_none_on_an_unknown_device():
  assert flops.peak_flops(jax.devices()[0]) is None


def test_peak_is_found_by_the_name_that_jax_gives():
  device = types.SimpleNamespace(device_kind="TPU v5 lite")
  assert flops.peak_flops(device) == 197e12
