"""Chooses the token of a document that an example is built around.

Documents are laid end to end; a document takes as much room as it has tokens,
but at least one span (the text of one sequence), so that short documents are
seen too. A pass visits a point every span; random ones are drawn by room.
"""

import numpy as np

from bert_jax.data.draws import GOLDEN, mix, permute
from bert_jax.data.splits import WHOLE

# More than the tokens of any document.
_PARTED = 2**50
# Room of documents that allow alike pairs, in rooms of the given document.
_LEAST_ALIKE = 8


class Places:
  """Finds the points of a pass, and random ones, among documents in a row."""

  def __init__(self, documents, span):
    """Computes where each document's room ends.

    Args:
      documents: `DOCUMENT` [N], at least two.
      span: int, tokens from one example's point to the next.
    """
    self._span = span
    self._num_tokens = documents["num_tokens"]
    room = np.maximum(self._num_tokens, span)
    # The room of all is a whole number of spans, so that passes follow on.
    room[-1] += -room.sum() % span
    self._ends = np.cumsum(room)
    self.examples_per_pass = int(self._ends[-1]) // span
    # A second layout: documents of one sentence, then the others, both from
    # short to long, so that documents which allow pairs of one form are
    # neighbours.
    self._kind = np.where(documents["num_sentences"] > 1, _PARTED, 0)
    keys = self._kind + self._num_tokens
    self._order = np.argsort(keys, kind="stable")
    self._rank = np.empty_like(self._order)
    self._rank[self._order] = np.arange(len(keys))
    self._ordered_keys = keys[self._order]
    self._ordered_ends = np.append(0, np.cumsum(room[self._order]))

  def points(self, indices, key):
    """Returns the points of examples.

    Args:
      indices: int64 [B], the numbers of the examples.
      key: uint64 [1], chooses the order and where a pass begins.

    Returns:
      (document int64 [B], its token that is the point int64 [B]).
    """
    number_of_pass, number = np.divmod(indices, self.examples_per_pass)
    number_of_pass = number_of_pass.astype(np.uint64)
    order_key = mix(key, number_of_pass)
    number = permute(
      number.astype(np.uint64), self.examples_per_pass, order_key
    )
    # The offsets of passes in a row lie far from one another.
    fraction = (mix(key) + number_of_pass * GOLDEN) >> np.uint64(32)
    offset = fraction * np.uint64(self._span) >> np.uint64(32)
    place = (number * np.uint64(self._span) + offset).astype(np.int64)
    document = np.searchsorted(self._ends, place, side="right")
    start = np.where(document > 0, self._ends[document - 1], 0)
    room = self._ends[document] - start
    return document, self._token(document, place - start, room)

  def alike(self, split, target):
    """Returns which documents allow pairs of the form of given ones.

    They have one sentence where the given document has one. Where it is shorter
    than the pair should be, they are so too, are about as long, and are long
    enough for the given B.

    Args:
      split: `Split` [B].
      target: int64 [B], tokens that A and B should have together.

    Returns:
      int64 [B, 2], where their room begins and ends in the second layout. Where
      these are so few that the same texts would be drawn again and again, all
      documents are allowed.
    """
    num_tokens, is_whole = split.num_tokens, split.zone == WHOLE
    shortest = np.maximum(split.rest, num_tokens * 3 // 4)
    longest = np.minimum(target, num_tokens * 4 // 3)
    kind = self._kind[split.document]
    first = np.searchsorted(
      self._ordered_keys,
      kind + np.where(is_whole, shortest, target),
      side="right",
    )
    last = np.searchsorted(
      self._ordered_keys,
      kind + np.where(is_whole, longest, _PARTED - 1),
      side="right",
    )
    own = self._rank[split.document]
    room = self._ordered_ends[own + 1] - self._ordered_ends[own]
    begin, end = self._ordered_ends[first], self._ordered_ends[last]
    is_enough = end - begin >= _LEAST_ALIKE * room
    begin = np.where(is_enough, begin, 0)
    return np.stack([begin, np.where(is_enough, end, self._ends[-1])], axis=1)

  def others(self, draw, document, allowed):
    """Draws tokens of other documents, in proportion to their room.

    Args:
      draw: `Draw` of B rows.
      document: int64 [B], documents to stay out of.
      allowed: int64 [B, 2], see `alike`.

    Returns:
      (document int64 [B], token int64 [B]).
    """
    own = self._rank[document]
    own_start, own_end = self._ordered_ends[own], self._ordered_ends[own + 1]
    begin, end = allowed.T
    place = begin + draw.integer(
      "random place", end - begin - (own_end - own_start)
    )
    place = np.where(place < own_start, place, place + own_end - own_start)
    rank = np.searchsorted(self._ordered_ends, place, side="right") - 1
    start, end = self._ordered_ends[rank], self._ordered_ends[rank + 1]
    found = self._order[rank]
    return found, self._token(found, place - start, end - start)

  def _token(self, document, offset, room):
    """Returns the token at an offset into a document's room, int64 [B]."""
    return offset * self._num_tokens[document] // room
