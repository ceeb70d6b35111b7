"""Claims about losses and accuracies."""

import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import default_config
from bert_jax.model.bert_config import BertConfig
from bert_jax.pretraining import losses
from bert_jax.pretraining.objective import create_objective
from bert_jax.training import sums as sums_lib

RNG = np.random.default_rng(0)
MLM_LOGITS = RNG.normal(0, 2, (6, 4, 11)).astype(np.float32)
NSP_LOGITS = RNG.normal(0, 2, (6, 2)).astype(np.float32)
BATCH = {
  "masked_lm_ids": RNG.integers(0, 11, (6, 4)),
  # Rows have one to four predictions: a mean of means would be wrong.
  "masked_lm_weights": (np.arange(4) <= np.arange(6)[:, None] % 4).astype(
    np.float32
  ),
  "next_sentence_labels": np.array([0, 1, 1, 0, 1, 1]),
}


def numpy_cross_entropy(logits, labels):
  probabilities = np.exp(logits.astype(np.float64))
  probabilities /= probabilities.sum(axis=-1, keepdims=True)
  right = np.take_along_axis(probabilities, labels[..., None], axis=-1)
  return -np.log(right[..., 0])


def sums(rows):
  batch = {name: value[rows] for name, value in BATCH.items()}
  return losses.pretraining_sums(MLM_LOGITS[rows], NSP_LOGITS[rows], batch)


def test_losses_are_cross_entropies():
  pairs = sums(slice(None))
  weights = BATCH["masked_lm_weights"]
  each = numpy_cross_entropy(MLM_LOGITS, BATCH["masked_lm_ids"])
  np.testing.assert_allclose(
    pairs["mlm_loss"], ((each * weights).sum(), weights.sum()), rtol=1e-5
  )
  each = numpy_cross_entropy(NSP_LOGITS, BATCH["next_sentence_labels"])
  np.testing.assert_allclose(pairs["nsp_loss"], (each.sum(), 6), rtol=1e-5)


def test_accuracies_count_the_right_ones():
  pairs = sums(slice(None))
  weights = BATCH["masked_lm_weights"]
  right = (MLM_LOGITS.argmax(-1) == BATCH["masked_lm_ids"]) * weights
  assert pairs["mlm_accuracy"] == (right.sum(), weights.sum())
  right = NSP_LOGITS.argmax(-1) == BATCH["next_sentence_labels"]
  assert pairs["nsp_accuracy"] == (right.sum(), 6)
  assert sums_lib.divide(pairs["nsp_base_rate"]) == pytest.approx(4 / 6)


def test_sums_of_two_devices_add_up_where_means_would_not():
  whole, first, second = sums(slice(None)), sums(slice(2)), sums(slice(2, 6))
  for name, pair in whole.items():
    parts = np.array(first[name]) + np.array(second[name])
    np.testing.assert_allclose(pair, parts, rtol=1e-6)
  mean_of_means = (
    sums_lib.divide(first["mlm_loss"]) + sums_lib.divide(second["mlm_loss"])
  ) / 2
  assert abs(mean_of_means - sums_lib.divide(whole["mlm_loss"])) > 0.01


def test_unused_slots_do_not_count_whatever_they_hold():
  logits = MLM_LOGITS.copy()
  logits[BATCH["masked_lm_weights"] == 0] = RNG.normal(0, 9, 11)
  args = BATCH["masked_lm_ids"], BATCH["masked_lm_weights"]
  for measure in (losses.masked_lm_loss, losses.masked_lm_accuracy):
    assert measure(logits, *args) == measure(MLM_LOGITS, *args)


def test_batch_without_predictions_has_loss_zero():
  nothing = np.zeros((6, 4), np.float32)
  pair = losses.masked_lm_loss(MLM_LOGITS, BATCH["masked_lm_ids"], nothing)
  assert sums_lib.divide(pair) == 0


def test_label_zero_means_next():
  """A model sure of "next" is right on label 0 and wrong on label 1."""
  sure = np.array([[20.0, -20.0]])
  assert losses.next_sentence_accuracy(sure, np.array([0]))[0] == 1
  assert losses.next_sentence_accuracy(sure, np.array([1]))[0] == 0
  assert losses.next_sentence_loss(sure, np.array([0]))[0] < 1e-6
  assert losses.next_sentence_loss(sure, np.array([1]))[0] > 39


def test_sums_are_float32_even_of_bfloat16_logits():
  logits = jnp.asarray(MLM_LOGITS, jnp.bfloat16)
  pairs = losses.pretraining_sums(logits, NSP_LOGITS, BATCH)
  for pair in pairs.values():
    assert [value.dtype for value in pair] == [np.float32, np.float32]
  args = BATCH["masked_lm_ids"], BATCH["masked_lm_weights"]
  rounded = losses.masked_lm_loss(np.asarray(logits, np.float32), *args)
  assert pairs["mlm_loss"] == rounded


def test_a_loss_is_divided_by_the_masked_tokens_or_the_pairs_of_the_batch():
  config = default_config()
  objective = create_objective(config, config.phase1, BertConfig(11), None)
  found = objective.loss_weights(BATCH)
  assert found == {"mlm_loss": BATCH["masked_lm_weights"].sum(), "nsp_loss": 6}
