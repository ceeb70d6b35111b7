"""Training examples as a pure function of (seed, phase, index).

There is no shuffle buffer and no iterator state: any host can compute any row
of any batch at once, so a resumed run and a run on other hosts see the very
same examples.

How example `i` is found, all of it vectorised over a batch:

1. Lay the documents end to end, each counted as at least one span of
   `max_seq_length - 3` tokens, and mark a point every span, at an offset that
   differs between the passes over the corpus. Example `i` belongs to the i-th
   point, in the order of a keyed permutation.
2. A window around the point is split at a sentence's end: A is whole sentences
   before it, and B has what A leaves of the length. How much A should have is
   drawn; one example in ten aims at less than the length. A window at the end
   of a long document has A and B of the lengths drawn, their fronts cut.
3. A random B comes from another document. Places are drawn by the law that the
   examples themselves follow (steps 1 and 2), among the documents that could
   have an A and B of this form, until one is found that gives B the same
   length and the same edges: from a sentence's start to the document's end
   where the document is short, else cut. If none is found, the true and the
   random B are both cut at the same edge, to the same length.
4. Only then is the label drawn, and takes the true or the random B.

Nothing but the text of A and B can thus tell the label: A, B's length, and
whether B begins or ends with a sentence or a document are fixed before it.

Where a sentence is so long that the window holds no end of one, A and B are
split within it, and a random B begins within a sentence too.
"""

import dataclasses

import numpy as np

from bert_jax.data.draws import Draw, mix
from bert_jax.data.places import Places
from bert_jax.data.splits import TAIL, WHOLE, Splits

# BERT, appendix A.2 and the original code's short_seq_prob.
SHORT_PROBABILITY = 0.1
NUM_SPECIAL_TOKENS = 3  # [CLS] A [SEP] B [SEP]
_MIN_TARGET_TOKENS = 2  # one for A, one for B
# How many places of a random B are looked at, round by round; rows that have
# found one of the right form take no part in the next.
_TRIES = (1, 3, 12, 36, 64)
# Count more than any difference of lengths: other edges, and A's own text.
_OTHER_FORM, _OWN_TEXT = 2**40, 2**42


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Where the tokens of a batch of examples lie in the corpus.

  Attributes:
    a_start, a_length: int64 [B], segment A in `Corpus.tokens`.
    b_start, b_length: int64 [B], segment B.
    is_random: bool [B], True where B does not follow A (label 1).
    is_short: bool [B], True where a shorter target was drawn.
    a_document, b_document: int64 [B], indices into `Examples.documents`.
  """

  a_start: np.ndarray
  a_length: np.ndarray
  b_start: np.ndarray
  b_length: np.ndarray
  is_random: np.ndarray
  is_short: np.ndarray
  a_document: np.ndarray
  b_document: np.ndarray


class Examples:
  """The examples of one phase over one set of documents."""

  def __init__(self, corpus, documents, max_seq_length, seed, stream):
    """Prepares the tables; cheap beside one batch of training.

    Args:
      corpus: `Corpus`.
      documents: `DOCUMENT` [N], at least two, the side to draw from.
      max_seq_length: tokens of a sequence, special tokens included.
      seed: int, chooses order, boundaries, labels and cuts.
      stream: int, tells phases and held-out examples with one seed apart.
    """
    self.documents = documents
    self.max_seq_length = max_seq_length
    self._corpus = corpus
    self._cls_id = corpus.vocab.index("[CLS]")
    self._sep_id = corpus.vocab.index("[SEP]")
    self._key = mix(np.uint64(seed % 2**64), np.uint64(stream))
    self._span = max_seq_length - NUM_SPECIAL_TOKENS
    self._splits = Splits(documents, corpus.sentence_starts, self._span // 2)
    self._places = Places(documents, self._span)
    # Examples of one pass over the documents.
    self.examples_per_pass = self._places.examples_per_pass

  def batch(self, indices):
    """Builds examples.

    Args:
      indices: int64 [B], any non-negative numbers.

    Returns:
      dict of `input_ids` [B, L] of the corpus' dtype, `a_length` int32 [B]
      (tokens of A), `length` int32 [B] (tokens in all, specials included) and
      `next_sentence_labels` int32 [B] (0 is next, 1 random). Segment ids,
      attention mask and masked positions follow from these on the device.
    """
    pairs = self.pairs(indices)
    length = pairs.a_length + pairs.b_length + NUM_SPECIAL_TOKENS
    a_length = pairs.a_length[:, None]
    slot = np.arange(self.max_seq_length)[None]
    # The text of a slot; special tokens and padding look at their neighbours'.
    a_shift = pairs.a_start[:, None] - 1
    b_shift = pairs.b_start[:, None] - 2 - a_length
    source = np.where(slot < a_length + 2, a_shift, b_shift)
    source += np.minimum(slot, length[:, None] - 2)
    source[:, 0] += 1
    input_ids = self._corpus.tokens[source]
    input_ids *= slot < length[:, None]
    rows = np.arange(len(input_ids))
    input_ids[:, 0] = self._cls_id
    input_ids[rows, 1 + pairs.a_length] = self._sep_id
    input_ids[rows, length - 1] = self._sep_id
    return {
      "input_ids": input_ids,
      "a_length": pairs.a_length.astype(np.int32),
      "length": length.astype(np.int32),
      "next_sentence_labels": pairs.is_random.astype(np.int32),
    }

  def pairs(self, indices):
    """Chooses the two segments of each example.

    Args:
      indices: int64 [B].

    Returns:
      `Pairs`.
    """
    indices = np.asarray(indices, np.int64)
    draw = Draw(mix(self._key, indices.astype(np.uint64)))
    target, is_short = self._targets(draw)
    share = draw.uniform("share")
    points = self._places.points(indices, self._key)
    true = self._splits.choose(*points, target, share)
    random = self._random_split(draw, true, target, share)
    is_amid = true.is_amid | random.is_amid
    true, random = true.amid(is_amid), random.amid(is_amid)
    # A B that ends its document begins where its length says, amid a sentence.
    # How far into it must not depend on A's sentences, as it does not for a
    # random B: lengths are those drawn, and A is cut at its front to fit.
    a_end = np.where(true.zone == TAIL, true.goal, true.boundary)
    a_wanted = a_end - true.start
    a_length = np.minimum(a_wanted, true.boundary)
    b_length, b_starts = self._segment_b(draw, true, random, target - a_wanted)
    is_random = draw.uniform("label") < 0.5
    b_document = np.where(is_random, random.document, true.document)
    document_start = self.documents["start"]
    return Pairs(
      a_start=document_start[true.document] + true.boundary - a_length,
      a_length=a_length,
      b_start=document_start[b_document] + np.where(is_random, *b_starts[::-1]),
      b_length=b_length,
      is_random=is_random,
      is_short=is_short,
      a_document=true.document,
      b_document=b_document,
    )

  def _targets(self, draw):
    """Draws the tokens each example aims at; one in ten falls short."""
    is_short = draw.uniform("short") < SHORT_PROBABILITY
    shorter = (
      draw.integer("target", self._span - _MIN_TARGET_TOKENS)
      + _MIN_TARGET_TOKENS
    )
    return np.where(is_short, shorter, self._span), is_short

  def _random_split(self, draw, true, target, share):
    """Draws the place of a random B of the same form as the true one.

    Args:
      draw: `Draw`.
      true: `Split`, the example's own.
      target: int64 [B], tokens that A and B should have together.
      share: float64 [B], see `Splits.choose`.

    Returns:
      `Split`, of other documents; the best of those that were looked at.
    """
    lowest = np.full(len(target), 2 * _OWN_TEXT)
    chosen = true
    text = self.documents["start"]
    alike = self._places.alike(true, target)
    rows, number = np.arange(len(target)), 0
    for count in _TRIES:
      if not len(rows):
        break
      tries = draw.tries(rows, np.arange(number, number + count))
      many = np.repeat(rows, count)
      found = self._places.others(tries, true.document[many], alike[many])
      split = self._splits.choose(*found, target[many], share[many])
      cost = _difference(true, many, split, target[many])
      # A document whose source has a weight may stand in the table repeatedly.
      is_own = text[split.document] == text[true.document[many]]
      cost = (cost + is_own * _OWN_TEXT).reshape(-1, count)
      best = np.arange(0, len(many), count) + np.argmin(cost, axis=1)
      cost = cost.min(axis=1)
      better = cost < lowest[rows]
      chosen = chosen.replaced(rows[better], split.take(best[better]))
      lowest[rows[better]] = cost[better]
      rows, number = rows[lowest[rows] > 0], number + count
    return chosen

  def _segment_b(self, draw, true, random, wanted):
    """Returns B's length and where a true and a random B of it start.

    Args:
      draw: `Draw`.
      true, random: `Split`, parted amid a sentence both or neither.
      wanted: int64 [B], tokens that A leaves.

    Returns:
      (length int64 [B], (start of the true B, of the random B) int64 [B], from
      the document's start).
    """
    is_whole, is_amid = true.zone == WHOLE, true.is_amid
    is_equal = true.rest == random.rest
    to_front = draw.uniform("cut") < 0.5
    # Both run to the end of their documents, or neither does.
    at_end = np.where(
      is_whole, is_equal | is_amid | to_front, true.zone == TAIL
    )
    shorter = np.minimum(true.rest, random.rest)
    whole = np.where(is_amid, true.rest, shorter - ~is_equal)
    inner = np.minimum(wanted, shorter - 1)
    length = np.where(is_whole, whole, np.where(at_end, wanted, inner))
    length = np.clip(length, 1, random.num_tokens - 1)
    starts = [
      np.where(at_end, split.num_tokens - length, split.boundary)
      for split in (true, random)
    ]
    # The others are cut at their front where a sentence's end is in reach.
    rows = np.flatnonzero(to_front & ~at_end & ~is_whole)
    length_there = length[rows]
    there = [split.take(rows) for split in (true, random)]
    ends = [self._end(split, length_there) for split in there]
    by_end = np.ones(len(rows), bool)
    for split, end in zip(there, ends, strict=True):
      run_over = end - split.boundary - length_there
      by_end &= (end < split.num_tokens) & (run_over <= self._splits.reach)
    for start, end in zip(starts, ends, strict=True):
      start[rows[by_end]] = (end - length_there)[by_end]
    return length, starts

  def _end(self, split, length):
    """Returns where the sentence ends that a B from the boundary ends in."""
    last = np.minimum(split.boundary + length, split.num_tokens) - 1
    return self._splits.sentence_end(split.document, last)


def _difference(true, rows, split, target):
  """Returns how far places are from giving B the true one's form, int64 [B]."""
  zone, is_amid = true.zone[rows], true.is_amid[rows]
  rest, a_length = true.rest[rows], (true.boundary - true.start)[rows]
  is_other = (split.zone != zone) | (split.is_amid != is_amid)
  missing = np.maximum(target - a_length + 1 - split.rest, 0)
  by_zone = np.where(zone == TAIL, 0, missing)
  differs = np.where(zone == WHOLE, np.abs(split.rest - rest), by_zone)
  return differs + is_other * _OTHER_FORM
