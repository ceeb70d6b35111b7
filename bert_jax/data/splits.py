"""Splits a part of a document into a segment A and the B that follows it."""

import dataclasses

import numpy as np

# Which part of its document a pair of segments takes up.
WHOLE, HEAD, MIDDLE, TAIL = range(4)


@dataclasses.dataclass(frozen=True)
class Split:
  """A place for A and B in each of some documents, one document a row.

  Positions are int64 [B], in tokens from the document's start.

  Attributes:
    document: int64 [B].
    num_tokens: int64 [B], tokens of the document.
    zone: int [B]. WHOLE, where the document is no longer than the two segments
      should be; else HEAD, MIDDLE or TAIL.
    start: where A starts.
    goal: where A should end, were it not for sentences.
    boundary: the first token behind A: a sentence's start where there is one.
    is_amid: bool [B], whether `boundary` lies within a sentence.
  """

  document: np.ndarray
  num_tokens: np.ndarray
  zone: np.ndarray
  start: np.ndarray
  goal: np.ndarray
  boundary: np.ndarray
  is_amid: np.ndarray

  @property
  def rest(self):
    """int64 [B], tokens from the boundary to the document's end."""
    return self.num_tokens - self.boundary

  def take(self, rows):
    """Returns the split of some rows, int64 or bool [B]."""
    return Split(*(getattr(self, f.name)[rows] for f in _FIELDS))

  def replaced(self, rows, other):
    """Returns a copy that has the rows of another split at `rows`, int64."""
    fields = {f.name: getattr(self, f.name).copy() for f in _FIELDS}
    for name, values in fields.items():
      values[rows] = getattr(other, name)
    return Split(**fields)

  def amid(self, is_amid):
    """Returns the split with its boundary at the goal, where told to."""
    boundary = np.where(is_amid, self.goal, self.boundary)
    return dataclasses.replace(
      self, boundary=boundary, is_amid=self.is_amid | is_amid
    )


_FIELDS = dataclasses.fields(Split)


class Splits:
  """Splits documents at the ends of their sentences."""

  def __init__(self, documents, sentence_starts, reach):
    """Takes the tables of a corpus.

    Args:
      documents: `DOCUMENT` [N].
      sentence_starts: uint32 [S], see `Corpus`.
      reach: int, tokens that a segment may be moved to begin or end with a
        sentence.
    """
    self.reach = reach
    self._num_tokens = documents["num_tokens"]
    self._num_sentences = documents["num_sentences"]
    self._first_sentence = documents["first_sentence"]
    self._sentence_starts = sentence_starts

  def choose(self, document, point, target, share):
    """Splits documents near a token.

    Args:
      document: int64 [B].
      point: int64 [B], the token, from the document's start.
      target: int64 [B], tokens that A and B should have together.
      share: float64 [B] in [0, 1), how much of them A should have.

    Returns:
      `Split`.
    """
    num_tokens = self._num_tokens[document]
    zone, window = _window(point, target, num_tokens)
    num_sentences = self._num_sentences[document]
    first = self._sentence_at(
      document, window, np.zeros_like(window), num_sentences
    )
    start = self._sentence_start(document, first)
    start = np.where(window - start > self.reach, window, start)
    length = np.minimum(target, num_tokens - start)
    goal = start + 1 + (share * (length - 1)).astype(np.int64)
    # A sentence has at least one token.
    high = np.minimum(num_sentences, first + goal - start + 1)
    sentence = self._sentence_at(document, goal, first, high)
    before = self._sentence_start(document, sentence)
    after = self._end_of(document, sentence, num_tokens, num_sentences)
    boundary = np.where(before > start, before, after)
    is_amid = boundary >= start + length
    # In a TAIL, B begins so many tokens before the document's end as were
    # drawn. A must end before that, and at most `reach` before its goal.
    b_start = num_tokens - target + goal - start
    is_far = (boundary > b_start) | (goal - boundary > self.reach)
    is_amid = is_amid | ((zone == TAIL) & is_far)
    return Split(
      document=document,
      num_tokens=num_tokens,
      zone=zone,
      start=start,
      goal=goal,
      boundary=np.where(is_amid, goal, boundary),
      is_amid=is_amid,
    )

  def sentence_end(self, document, token):
    """Returns where the sentence that holds a token ends.

    Args:
      document: int64 [B].
      token: int64 [B], from the document's start.

    Returns:
      int64 [B], the first token behind the sentence.
    """
    num_tokens = self._num_tokens[document]
    num_sentences = self._num_sentences[document]
    sentence = self._sentence_at(
      document, token, np.zeros_like(token), num_sentences
    )
    return self._end_of(document, sentence, num_tokens, num_sentences)

  def _end_of(self, document, sentence, num_tokens, num_sentences):
    """Returns where a document's n-th sentence ends, int64 [B]."""
    following = np.minimum(sentence + 1, num_sentences - 1)
    return np.where(
      sentence + 1 < num_sentences,
      self._sentence_start(document, following),
      num_tokens,
    )

  def _sentence_start(self, document, sentence):
    """Returns the first token of a document's n-th sentence, int64 [B]."""
    at = self._first_sentence[document] + sentence
    return self._sentence_starts[at].astype(np.int64)

  def _sentence_at(self, document, token, low, high):
    """Returns which sentence holds a token: a search in [low, high)."""
    first = self._first_sentence[document]
    low, high = first + low, first + high
    while (high - low > 1).any():
      middle = (low + high) >> 1
      before = self._sentence_starts[middle] <= token
      low, high = np.where(before, middle, low), np.where(before, high, middle)
    return low - first


def _window(point, target, num_tokens):
  """Places a window of the target's length around a token.

  A window that would begin less than a quarter of its length behind the
  document's start is moved there, and to the end likewise. Without this, the
  first and the last token would be in half as many windows as the others.

  Args:
    point: int64 [B], the token.
    target: int64 [B], tokens of the window.
    num_tokens: int64 [B], tokens of the document.

  Returns:
    (zone int [B], the window's start int64 [B]).
  """
  slack = np.maximum(num_tokens - target, 0)
  start = np.clip(point - target // 2, 0, slack)
  margin = np.minimum(target // 4, slack // 2)
  start = np.where(start < margin, 0, start)
  start = np.where(start > slack - margin, slack, start)
  zone = np.where(start == 0, HEAD, np.where(start == slack, TAIL, MIDDLE))
  return np.where(slack == 0, WHOLE, zone), start
