"""Lengths of batches: fewest slots, every row once, and resumable."""

import ml_collections
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.finetune import features as features_lib
from bert_jax.finetune.features import (
  TrainingExamples,
  choose_lengths,
  create_features,
  eval_batches,
)

BATCH_SIZE = 8


def _features(num_rows=203, num_lengths=4, longest=60, max_seq_length=64):
  """Rows of many lengths whose tokens are their own numbers."""
  lengths = np.random.default_rng(0).integers(2, longest + 1, num_rows)
  data = ml_collections.ConfigDict(
    {"num_lengths": num_lengths, "max_seq_length": max_seq_length}
  )
  return create_features([[i + 1] * n for i, n in enumerate(lengths)], data)


def _examples(features, num_steps=150, seed=0):
  return TrainingExamples(features, seed, BATCH_SIZE, num_steps)


def _batches(examples, first=0):
  return [
    examples.batch(np.arange(step * BATCH_SIZE, (step + 1) * BATCH_SIZE))
    for step in range(first, examples.num_steps)
  ]


def _slots(tokens, lengths):
  return sum(min(n for n in lengths if n >= t) for t in tokens)


@given(
  st.lists(st.integers(2, 72), min_size=1, max_size=30),
  st.integers(1, 3),
)
def test_no_other_choice_of_lengths_pads_less(tokens, num_lengths):
  found = choose_lengths(np.array(tokens), num_lengths, 70)
  assert len(found) <= num_lengths
  tokens = [min(t, 70) for t in tokens]
  tiles = sorted({min(8 * -(-t // 8), 70) for t in tokens})
  assert found[-1] == tiles[-1]
  choices = [(a, b, tiles[-1]) for a in tiles for b in tiles]
  choices = [sorted(set(c[3 - num_lengths :])) for c in choices]
  assert _slots(tokens, found) == min(_slots(tokens, c) for c in choices)


def test_no_batch_is_longer_than_asked_for():
  """Positions need be no multiple of anything."""
  features = _features(longest=50, max_seq_length=50)
  assert features.max_seq_length == 50
  assert features.arrays["input_ids"].shape[1] == 50


def test_every_epoch_sees_every_row_once_and_nothing_is_cut():
  features = _features(num_rows=200)
  for row in (_batches(_examples(features, 75)), _batches(_examples(features))):
    ids = np.concatenate([batch["input_ids"][:, 0] for batch in row])
    counts = np.bincount(ids, minlength=201)[1:]
    assert (counts == len(ids) // 200).all()
  for batch in row:
    mask = np.arange(batch["input_ids"].shape[1]) < batch["length"][:, None]
    np.testing.assert_array_equal(
      batch["input_ids"], np.where(mask, batch["input_ids"][:, :1], 0)
    )


def test_batches_depend_on_seed_and_step_alone():
  whole = _batches(_examples(_features()))
  resumed = _batches(_examples(_features()), first=97)
  for a, b in zip(whole[97:], resumed, strict=True):
    np.testing.assert_array_equal(a["input_ids"], b["input_ids"])
  other = _batches(_examples(_features(), seed=1))
  assert any(
    a["input_ids"].shape != b["input_ids"].shape
    or (a["input_ids"] != b["input_ids"]).any()
    for a, b in zip(whole, other, strict=True)
  )


def test_processes_feed_parts_of_one_batch():
  examples = _examples(_features())
  first = 5 * BATCH_SIZE
  whole = examples.batch(np.arange(first, first + BATCH_SIZE))
  parts = [
    examples.batch(np.arange(first, first + BATCH_SIZE)[rows])
    for rows in ([0, 1, 4], [2, 3, 5, 6, 7])
  ]
  for name, array in whole.items():
    merged = np.empty_like(array)
    merged[[0, 1, 4]], merged[[2, 3, 5, 6, 7]] = (p[name] for p in parts)
    np.testing.assert_array_equal(merged, array)


def test_lengths_are_few_known_beforehand_and_mixed():
  features = _features(num_rows=2000)
  examples = _examples(features, 600)
  slots = [batch["input_ids"].shape[1] for batch in _batches(examples)]
  assert slots == examples.slots()
  assert set(slots) == set(features.lengths)
  assert len(features.lengths) == 4
  fill = [b["length"].sum() / b["input_ids"].size for b in _batches(examples)]
  padded = _batches(_examples(_features(2000, num_lengths=1), 600))
  before = [b["length"].sum() / b["input_ids"].size for b in padded]
  assert np.mean(fill) > 0.7 > 0.5 > np.mean(before)
  # Not in the order of their lengths, in which training would forget.
  assert np.corrcoef(slots[:240], np.arange(240))[0, 1] < 0.3


def test_who_is_in_a_batch_together_is_drawn_anew_each_epoch():
  examples = _examples(_features(num_rows=2000), 500)
  groups = [
    [set(b["input_ids"][:, 0].tolist()) for b in part]
    for batches in [_batches(examples)]
    for part in (batches[:250], batches[250:])
  ]
  together = max(len(a & b) for a in groups[0] for b in groups[1])
  assert together < BATCH_SIZE / 2


@pytest.mark.parametrize("num_rows", [3, 8, 203])
def test_evaluation_sees_every_row_in_its_own_bucket(num_rows):
  features = _features(num_rows)
  seen = {}
  for rows, batch in eval_batches(features, BATCH_SIZE):
    assert len(rows) == BATCH_SIZE
    slots = batch["input_ids"].shape[1]
    for row, ids, length in zip(
      rows, batch["input_ids"], batch["length"], strict=True
    ):
      assert (ids[:length] == row + 1).all()
      assert slots == min(n for n in features.lengths if n >= length)
      seen[int(row)] = seen.get(int(row), 0) + 1
  assert seen.keys() == set(range(num_rows))
  assert len(features_lib.choose_lengths([9], 4, 512)) == 1
