"""Masked-LM inputs and labels, made on the device inside the step.

BERT, section 3.1 and appendix A.1: 15 % of the tokens are chosen; of these,
80 % become [MASK], 10 % a random token and 10 % stay. Every random draw has
the shape of the global batch, so the masks do not depend on the mesh.

Shapes: `B` batch, `L` length, `K` predictions a sequence, `V` vocabulary.
"""

import re

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

# An [UNK] may be chosen, as in the original code: it stands for a word.
_NEVER_CHOSEN = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
# Embedding rows that tokenised text never uses: unused entries of the original
# vocabularies, and rows of a model that has more of them than its vocabulary.
_NO_TEXT = re.compile(r"\[(unused|row )\d+\]")
_NEVER_DRAWN = re.compile(r"\[(PAD|UNK|CLS|SEP|MASK|(unused|row )\d+)\]")


def create_masking_vocab(vocab):
  """Tabulates what masking needs to know about each token.

  Args:
    vocab: list of str, the tokens in the order of their ids.

  Returns:
    `MaskingVocab`.

  Raises:
    ValueError: there is no [MASK], or fewer than two ordinary tokens.
  """
  if "[MASK]" not in vocab:
    raise ValueError("the vocabulary has no [MASK]; expected one to mask with")
  drawable = np.array([not _NEVER_DRAWN.fullmatch(token) for token in vocab])
  random_ids = np.flatnonzero(drawable).astype(np.int32)
  if len(random_ids) < 2:
    raise ValueError(
      f"the vocabulary has {len(random_ids)} ordinary tokens; expected at "
      "least 2, so that a random token can differ from the one it replaces"
    )
  ranks = np.cumsum(drawable, dtype=np.int32) - 1
  return MaskingVocab(
    mask_id=vocab.index("[MASK]"),
    is_special=np.array([token in _NEVER_CHOSEN for token in vocab]),
    is_continuation=np.array([token.startswith("##") for token in vocab]),
    random_ids=random_ids,
    any_ids=np.flatnonzero([not _NO_TEXT.fullmatch(t) for t in vocab]).astype(
      np.int32
    ),
    random_rank=np.where(drawable, ranks, len(random_ids)).astype(np.int32),
  )


def count_predictions(max_length, rate, max_predictions):
  """Tabulates how many tokens are chosen in a sequence of each length.

  `min(max_predictions, max(1, round(rate * n)))`; halves are rounded up. The
  table is made on the host since float32 products can miss an exact half.

  Args:
    max_length: L.
    rate: share of the real tokens, 0 < rate < 1.
    max_predictions: K.

  Returns:
    int32 numpy array [L + 1], indexed by the number of real tokens n, [CLS]
    and [SEP] included.
  """
  exact = np.round(rate * np.arange(max_length + 1), 9)
  return np.clip(np.floor(exact + 0.5), 1, max_predictions).astype(np.int32)


def mask_tokens(
  key,
  input_ids,
  length,
  vocab,
  *,
  rate,
  mask_prob,
  random_prob,
  random_token,
  whole_word,
  max_predictions,
):
  """Chooses the tokens to predict and replaces most of them.

  Args:
    key: PRNG key of this step.
    input_ids: int32 [B, L].
    length: int32 [B], real tokens of each row; the rest is padding.
    vocab: `MaskingVocab`.
    rate: share of the real tokens to choose.
    mask_prob: share of the chosen that become [MASK].
    random_prob: share of the chosen that become a random token.
    random_token: "different" never draws the token that is replaced nor a
      special one; "any" may. Neither draws rows that text never uses.
    whole_word: if True, all pieces of a word are chosen together.
    max_predictions: K.

  Returns:
    dict of
      input_ids: int32 [B, L], with the chosen tokens replaced.
      masked_lm_positions: int32 [B, K], ascending; 0 in unused slots.
      masked_lm_ids: int32 [B, K], the tokens that stood there.
      masked_lm_weights: float32 [B, K], 1 in used slots and 0 elsewhere.
  """
  batch_size, max_length = input_ids.shape
  choice_key, fate_key, token_key = jax.random.split(key, 3)

  slots = jnp.arange(max_length)[None]
  special = jnp.asarray(vocab.is_special)[input_ids]
  eligible = (slots < length[:, None]) & ~special
  table = count_predictions(max_length, rate, max_predictions)
  budget = jnp.asarray(table)[length]
  order = jax.random.uniform(choice_key, (batch_size, max_length))
  if whole_word:
    continues = jnp.asarray(vocab.is_continuation)[input_ids]
    chosen = _choose_words(order, eligible, continues, budget)
  else:
    chosen = _choose_tokens(order, eligible, budget)

  fate = jax.random.uniform(fate_key, (batch_size, max_length))
  if random_token == "different":
    drawn = _draw_different(token_key, input_ids, vocab)
  else:
    any_ids = jnp.asarray(vocab.any_ids)
    draw = jax.random.randint(token_key, input_ids.shape, 0, len(any_ids))
    drawn = any_ids[draw]
  replacement = jnp.where(
    fate < mask_prob,
    vocab.mask_id,
    jnp.where(fate < mask_prob + random_prob, drawn, input_ids),
  )

  # Chosen positions sort to the front, the others to the value L behind them.
  positions = jnp.sort(jnp.where(chosen, slots, max_length), axis=1)
  positions = positions[:, :max_predictions]
  used = positions < max_length
  positions = jnp.where(used, positions, 0)
  return {
    "input_ids": jnp.where(chosen, replacement, input_ids),
    "masked_lm_positions": positions,
    "masked_lm_ids": jnp.take_along_axis(input_ids, positions, axis=1),
    "masked_lm_weights": used.astype(jnp.float32),
  }


def _choose_tokens(order, eligible, budget):
  """Takes the eligible tokens that come first in a random order.

  Args:
    order: float [B, L] in [0, 1).
    eligible: bool [B, L].
    budget: int32 [B], the most tokens to take.

  Returns:
    bool [B, L].
  """
  # Ranks rather than a threshold: equal draws must not exceed the budget.
  by_order = jnp.argsort(jnp.where(eligible, order, 1), axis=1)
  rank = jnp.argsort(by_order, axis=1)
  return eligible & (rank < budget[:, None])


def _choose_words(order, eligible, continues, budget):
  """Takes whole words in a random order, skipping those that do not fit.

  The original code's whole-word rule. Nothing is chosen in a sequence where
  every word is longer than the budget.

  Args:
    order: float [B, L] in [0, 1), one entry for each word and the rest unused.
    eligible: bool [B, L].
    continues: bool [B, L], the token is a "##" piece.
    budget: int32 [B], the most tokens to take.

  Returns:
    bool [B, L].
  """
  max_length = eligible.shape[1]
  # A "##" piece right after [CLS] or [SEP], whose word was cut there, starts a
  # word of its own.
  follows = jnp.pad(eligible[:, :-1], ((0, 0), (1, 0)))
  starts = eligible & ~(continues & follows)
  word = jnp.where(eligible, jnp.cumsum(starts, axis=1) - 1, max_length)
  count_pieces = jax.vmap(
    lambda word: jnp.bincount(word, length=max_length + 1)[:-1]
  )
  size = count_pieces(word)

  by_order = jnp.argsort(jnp.where(size > 0, order, 1), axis=1)
  sizes = jnp.take_along_axis(size, by_order, axis=1)

  def take_if_it_fits(taken_tokens, size):
    fits = taken_tokens + size <= budget
    return taken_tokens + jnp.where(fits, size, 0), fits

  _, fits = jax.lax.scan(take_if_it_fits, jnp.zeros_like(budget), sizes.T)
  rank = jnp.argsort(by_order, axis=1)
  word_chosen = jnp.take_along_axis(fits.T, rank, axis=1)
  chosen = jnp.take_along_axis(
    word_chosen, jnp.minimum(word, max_length - 1), axis=1
  )
  return eligible & chosen


def _draw_different(key, input_ids, vocab):
  """Draws, for each token, an ordinary token other than it.

  Args:
    key: PRNG key.
    input_ids: int32 [B, L].
    vocab: `MaskingVocab`.

  Returns:
    int32 [B, L], uniform over `vocab.random_ids` without the input's own.
  """
  rank = jnp.asarray(vocab.random_rank)[input_ids]
  count = len(vocab.random_ids)
  # A draw among the others: those at and behind the own rank move up by one.
  others = count - (rank < count)
  draw = jax.random.randint(key, input_ids.shape, 0, others)
  return jnp.asarray(vocab.random_ids)[draw + (draw >= rank)]


@flax.struct.dataclass
class MaskingVocab:
  """What masking needs to know about a vocabulary.

  Attributes:
    mask_id: id of [MASK].
    is_special: bool [V], never chosen for prediction.
    is_continuation: bool [V], "##" pieces.
    random_ids: int32 [R], the ordinary tokens: neither special nor [unusedN].
    any_ids: int32 [A], these and the special ones.
    random_rank: int32 [V], each id's index in `random_ids`; R if not there.
  """

  mask_id: int
  is_special: np.ndarray
  is_continuation: np.ndarray
  random_ids: np.ndarray
  any_ids: np.ndarray
  random_rank: np.ndarray
