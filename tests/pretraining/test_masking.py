"""Claims about the choice and the replacement of masked tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bert_jax.pretraining import masking

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(5)
# Two unused slots, 200 words and 93 pieces.
VOCAB = [
  *SPECIAL,
  "[unused0]",
  "[unused17]",
  *(f"word{i}" for i in range(200)),
  *(f"##piece{i}" for i in range(93)),
]
FIRST_WORD, FIRST_PIECE = 7, 207
TABLES = masking.create_masking_vocab(VOCAB)
RULES = {
  "rate": 0.15,
  "mask_prob": 0.8,
  "random_prob": 0.1,
  "random_token": "different",
  "whole_word": False,
  "max_predictions": 20,
}


@functools.lru_cache
def compiled(**changes):
  """Returns `mask_tokens` under jit, with the paper's rules but `changes`."""
  return jax.jit(
    lambda key, input_ids, length: masking.mask_tokens(
      key, input_ids, length, TABLES, **{**RULES, **changes}
    )
  )


def mask(input_ids, length, seed=0, **changes):
  masked = compiled(**changes)(jax.random.key(seed), input_ids, length)
  return {name: np.asarray(value) for name, value in masked.items()}


def random_rows(batch_size, max_length, seed=0, shortest=4):
  """Makes rows `[CLS] A [SEP] B [SEP]` of random lengths, padded.

  A third of the tokens are pieces; A and B may start in mid-word.
  """
  rng = np.random.default_rng(seed)
  length = rng.integers(shortest, max_length + 1, batch_size, np.int32)
  shape = (batch_size, max_length)
  ids = np.where(
    rng.random(shape) < 0.33,
    rng.integers(FIRST_PIECE, len(VOCAB), shape),
    rng.integers(FIRST_WORD, FIRST_PIECE, shape),
  ).astype(np.int32)
  ids[:, 0] = CLS
  for row, n in enumerate(length):
    ids[row, n // 2] = SEP
    ids[row, n - 1] = SEP
    ids[row, n:] = PAD
  return ids, length


def chosen_slots(masked, max_length):
  """Returns bool [B, L], True at the used positions."""
  rows, columns = np.nonzero(masked["masked_lm_weights"])
  chosen = np.zeros((len(masked["input_ids"]), max_length), bool)
  chosen[rows, masked["masked_lm_positions"][rows, columns]] = True
  return chosen


def words_of(row):
  """Yields the slots of each word of one row, by a loop."""
  word = []
  for slot, token in enumerate(row):
    if token in (PAD, CLS, SEP, MASK):
      if word:
        yield word
      word = []
    elif token >= FIRST_PIECE and word:
      word.append(slot)
    else:
      if word:
        yield word
      word = [slot]
  if word:
    yield word


def test_share_is_rounded_half_up_and_clipped():
  counts = masking.count_predictions(512, 0.15, 512)
  # 0.15 * 10 = 1.5 and 0.15 * 30 = 4.5 are halves; one token at least.
  lengths = [1, 3, 9, 10, 30, 128, 512]
  assert counts[lengths].tolist() == [1, 1, 1, 2, 5, 19, 77]
  assert masking.count_predictions(512, 0.15, 76).max() == 76


@pytest.mark.parametrize("whole_word", [False, True])
def test_special_tokens_and_padding_are_never_chosen(whole_word):
  ids, length = random_rows(64, 48)
  ids[3, 5] = MASK
  for seed in range(20):
    masked = mask(ids, length, seed, whole_word=whole_word)
    hidden = ids[chosen_slots(masked, 48)]
    assert not np.isin(hidden, [PAD, CLS, SEP, MASK]).any()


def test_exactly_the_stated_number_is_chosen():
  """Or all eligible tokens, where a row has fewer."""
  ids, length = random_rows(256, 64, shortest=3)
  eligible = ~np.isin(ids, [PAD, CLS, SEP])
  budget = np.floor(0.15 * length + 0.5).clip(1, 6)
  masked = mask(ids, length, max_predictions=6)
  np.testing.assert_array_equal(
    masked["masked_lm_weights"].sum(axis=1),
    np.minimum(budget, eligible.sum(axis=1)),
  )


@pytest.mark.parametrize("whole_word", [False, True])
def test_labels_are_the_tokens_that_stood_there(whole_word):
  """Positions ascend, unused slots are 0, all else is left alone."""
  ids, length = random_rows(64, 48)
  masked = mask(ids, length, whole_word=whole_word)
  positions = masked["masked_lm_positions"]
  used = masked["masked_lm_weights"] == 1
  np.testing.assert_array_equal(
    masked["masked_lm_ids"], np.take_along_axis(ids, positions, axis=1)
  )
  assert np.isin(masked["masked_lm_weights"], [0, 1]).all()
  assert not positions[~used].any()
  ascends = np.diff(positions, axis=1) > 0
  np.testing.assert_array_equal(ascends, used[:, 1:])
  untouched = ~chosen_slots(masked, 48)
  np.testing.assert_array_equal(masked["input_ids"][untouched], ids[untouched])


@pytest.mark.parametrize("whole_word", [False, True])
def test_row_without_an_eligible_token_has_no_weight(whole_word):
  ids = np.full((2, 12), PAD, np.int32)
  ids[:, :3] = [CLS, SEP, SEP]
  ids[1, 3] = FIRST_WORD
  length = np.array([3, 4], np.int32)
  masked = mask(ids, length, whole_word=whole_word)
  assert masked["masked_lm_weights"].sum(axis=1).tolist() == [0, 1]
  np.testing.assert_array_equal(masked["input_ids"][0], ids[0])
  assert not masked["masked_lm_positions"][0].any()


def test_every_eligible_position_is_chosen_equally_often():
  ids = np.full((4000, 22), FIRST_WORD, np.int32)
  ids[:, [0, 9, 21]] = [CLS, SEP, SEP]
  masked = mask(ids, np.full(4000, 22, np.int32))
  counts = chosen_slots(masked, 22).sum(axis=0)
  assert not counts[[0, 9, 21]].any()
  # 3 of 19 in 4,000 rows: 632 each; five standard deviations.
  counts = np.delete(counts, [0, 9, 21])
  assert np.abs(counts - 4000 * 3 / 19).max() < 5 * (632 * 16 / 19) ** 0.5


def test_chosen_tokens_are_masked_changed_and_kept_80_10_10():
  ids, length = random_rows(2048, 64)
  masked = mask(ids, length)
  chosen = chosen_slots(masked, 64)
  before, after = ids[chosen], masked["input_ids"][chosen]
  shares = [
    (after == MASK).mean(),
    ((after != MASK) & (after != before)).mean(),
    (after == before).mean(),
  ]
  # Four standard errors of an 0.8 share.
  error = 4 * (0.8 * 0.2 / chosen.sum()) ** 0.5
  assert chosen.sum() > 10_000
  assert shares == pytest.approx([0.8, 0.1, 0.1], abs=error)


def test_random_token_is_any_ordinary_token_but_the_one_replaced():
  """Uniform over the vocabulary, not over what happens to be in the batch."""
  ids = np.full((4000, 40), FIRST_WORD, np.int32)
  ids[:, 20:] = len(VOCAB) - 1
  masked = mask(
    ids, np.full(4000, 40, np.int32), mask_prob=0.0, random_prob=1.0
  )
  chosen = chosen_slots(masked, 40)
  before, after = ids[chosen], masked["input_ids"][chosen]
  assert (before != after).all()
  for token in (FIRST_WORD, len(VOCAB) - 1):
    drawn = np.bincount(after[before == token], minlength=len(VOCAB))
    others = np.delete(drawn[FIRST_WORD:], token - FIRST_WORD)
    assert not drawn[:FIRST_WORD].any()
    expected = others.sum() / len(others)
    # The largest of 292 deviations; 99.99 % of all seeds stay below.
    assert np.abs(others - expected).max() < 5 * expected**0.5


def test_unknown_words_may_be_chosen_and_are_always_changed():
  ids = np.full((50, 20), UNK, np.int32)
  masked = mask(ids, np.full(50, 20, np.int32), mask_prob=0.0, random_prob=1.0)
  after = masked["input_ids"][chosen_slots(masked, 20)]
  assert len(after) == 150
  assert (after >= FIRST_WORD).all()


def test_original_rule_draws_from_all_that_a_text_can_hold():
  ids = np.full((4000, 40), FIRST_WORD, np.int32)
  masked = mask(
    ids,
    np.full(4000, 40, np.int32),
    mask_prob=0.0,
    random_prob=1.0,
    random_token="any",
  )
  drawn = masked["input_ids"][chosen_slots(masked, 40)]
  unused = {VOCAB.index("[unused0]"), VOCAB.index("[unused17]")}
  assert set(drawn) == set(range(len(VOCAB))) - unused


@pytest.mark.parametrize("random_token", ["different", "any"])
def test_rows_that_no_text_yields_are_never_drawn(random_token):
  """Those of a model with more embeddings than its vocabulary has tokens."""
  vocab = [*SPECIAL, "one", "two", *(f"[row {i}]" for i in range(7, 40))]
  ids = np.full((500, 40), vocab.index("one"), np.int32)
  rules = {"mask_prob": 0.0, "random_prob": 1.0, "random_token": random_token}
  masked = masking.mask_tokens(
    jax.random.key(0),
    ids,
    np.full(500, 40, np.int32),
    masking.create_masking_vocab(vocab),
    **RULES | rules,
  )
  assert np.asarray(masked["input_ids"]).max() < 7


def test_whole_words_are_chosen_whole_and_fill_the_budget():
  """Never a part, never too many; at least 99.5 % of the budget is used."""
  ids, length = random_rows(400, 128, shortest=64)
  masked = mask(ids, length, whole_word=True)
  chosen = chosen_slots(masked, 128)
  for row, picked in zip(ids, chosen, strict=True):
    for word in words_of(row):
      assert len(set(picked[word])) == 1
  budget = masking.count_predictions(128, 0.15, 20)[length]
  taken = chosen.sum(axis=1)
  assert (taken <= budget).all()
  assert taken.sum() / budget.sum() > 0.995


def test_word_over_the_budget_is_skipped_for_one_that_fits():
  """Budget 2; one word of three pieces, one of two."""
  row = [CLS, 7, 207, 208, SEP, 8, 209, SEP, *[PAD] * 8]
  ids = np.tile(np.array(row, np.int32), (50, 1))
  masked = mask(ids, np.full(50, 8, np.int32), rate=0.25, whole_word=True)
  assert (masked["masked_lm_positions"][:, :3] == [5, 6, 0]).all()
  assert (masked["masked_lm_weights"].sum(axis=1) == 2).all()


def test_same_key_same_masks_other_key_other_masks():
  ids, length = random_rows(16, 64)
  first, again, other = (mask(ids, length, seed) for seed in (5, 5, 6))
  for name, value in first.items():
    np.testing.assert_array_equal(value, again[name])
  assert (first["input_ids"] != other["input_ids"]).any()


@pytest.mark.parametrize("whole_word", [False, True])
def test_masks_do_not_depend_on_the_mesh(whole_word):
  """One device and eight give the same rows."""
  ids, length = random_rows(32, 64)
  alone = mask(ids, length, whole_word=whole_word)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  rows = NamedSharding(mesh, PartitionSpec("data"))
  ids, length = jax.device_put((ids, length), rows)
  masked = compiled(whole_word=whole_word)(jax.random.key(0), ids, length)
  for name, value in masked.items():
    np.testing.assert_array_equal(value, alone[name])


def test_tables_follow_from_the_vocabulary():
  tables = masking.create_masking_vocab(VOCAB)
  assert tables.mask_id == MASK
  np.testing.assert_array_equal(
    tables.random_ids, np.arange(FIRST_WORD, len(VOCAB))
  )
  np.testing.assert_array_equal(
    tables.random_ids[tables.random_rank[FIRST_WORD:]], tables.random_ids
  )
  assert (tables.random_rank[:FIRST_WORD] == len(tables.random_ids)).all()
  np.testing.assert_array_equal(
    np.flatnonzero(tables.is_continuation), np.arange(FIRST_PIECE, len(VOCAB))
  )


@pytest.mark.parametrize(
  ("vocab", "said"),
  [(["[PAD]", "a", "b"], r"no \[MASK\]"), ([*SPECIAL, "a"], "1 ordinary")],
)
def test_vocabulary_that_cannot_be_masked_is_refused(vocab, said):
  with pytest.raises(ValueError, match=said):
    masking.create_masking_vocab(vocab)


def test_tables_can_be_an_argument_of_a_compiled_step():
  ids, length = random_rows(4, 32)
  masked = jax.jit(
    lambda key, vocab: masking.mask_tokens(key, ids, length, vocab, **RULES)
  )(jax.random.key(0), jax.tree.map(jnp.asarray, TABLES))
  np.testing.assert_array_equal(
    masked["input_ids"], mask(ids, length)["input_ids"]
  )
