"""Training examples as a pure function of (seed, phase, index).

There is no shuffle buffer and no iterator state: any host can compute any row
of any batch at once, so a resumed run and a run on other hosts see the very
same examples.

How example `i` is found, all of it vectorised over a batch:

1. Lay the documents end to end, each stretched to at least one full span of
   `max_seq_length - 3` tokens, and place a point every span, at an offset
   drawn anew for every pass over the corpus. Example `i` belongs to the i-th
   point, in the order of a keyed permutation.
2. The end of the point's sentence parts A from B: A is what precedes it, B what
   follows. How much of the length goes to A is drawn; one example in ten aims
   at less than the length. Both run to whole sentences.
3. For half of the examples B is replaced: by text from a sentence that follows
   a point drawn uniformly over the tokens of all OTHER documents, as long as
   the true B. All else is chosen before the label is, so neither A nor the
   lengths tell it.
4. What is too long is cut from the longer side, at its front or its back.

Where a sentence is so long that text in it would be out of reach, A and B are
parted amid it, and a random B begins amid a sentence too.
"""

import dataclasses
import math
import zlib

import numpy as np

# BERT, appendix A.2 and the original code's short_seq_prob.
SHORT_PROBABILITY = 0.1
NUM_SPECIAL_TOKENS = 3  # [CLS] A [SEP] B [SEP]
_MIN_TARGET_TOKENS = 2  # one for A, one for B
_FEISTEL_ROUNDS = 4
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


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
    self._key = _mix(np.uint64(seed % 2**64), np.uint64(stream))
    self._span = max_seq_length - NUM_SPECIAL_TOKENS
    stretched = np.maximum(documents["num_tokens"], self._span)
    self._stretched_ends = np.cumsum(stretched)
    self._stretched_starts = self._stretched_ends - stretched
    self._token_ends = np.cumsum(documents["num_tokens"])
    self._num_stretched = int(self._stretched_ends[-1])
    self.num_tokens = int(self._token_ends[-1])
    # Examples of one pass over the documents.
    self.examples_per_pass = self._num_stretched // self._span

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
    a_length, b_length = pairs.a_length[:, None], pairs.b_length[:, None]
    slot = np.arange(self.max_seq_length)[None]
    a_offset = slot - 1
    b_offset = slot - 2 - a_length
    in_a = (a_offset >= 0) & (a_offset < a_length)
    in_b = (b_offset >= 0) & (b_offset < b_length)
    source = np.where(
      in_a, pairs.a_start[:, None] + a_offset, pairs.b_start[:, None] + b_offset
    )
    in_text = in_a | in_b
    input_ids = self._corpus.tokens[np.where(in_text, source, 0)]
    input_ids[~in_text] = 0
    rows = np.arange(len(input_ids))
    input_ids[:, 0] = self._cls_id
    input_ids[rows, 1 + pairs.a_length] = self._sep_id
    input_ids[rows, 2 + pairs.a_length + pairs.b_length] = self._sep_id
    length = pairs.a_length + pairs.b_length + NUM_SPECIAL_TOKENS
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
    draw = _Draw(self._key, indices)
    target, is_short = self._targets(draw)
    a_document, point = self._points(indices)
    boundary, is_amid = self._boundary(a_document, point)
    a_length, b_wanted = self._shares(a_document, boundary, target, draw)
    b_document, b_start = self._random_start(
      a_document, b_wanted, is_amid, draw
    )
    is_random = draw.uniform("label") < 0.5
    b_document = np.where(is_random, b_document, a_document)
    b_start = np.where(is_random, b_start, boundary)
    b_length = self._length_to_sentence_end(b_document, b_start, b_wanted)
    a_cut, b_cut = _excess(a_length, b_length, target)
    a_front = np.where(draw.uniform("cut a") < 0.5, a_cut, 0)
    b_front = np.where(draw.uniform("cut b") < 0.5, b_cut, 0)
    document_start = self.documents["start"]
    return Pairs(
      a_start=document_start[a_document] + boundary - a_length + a_front,
      a_length=a_length - a_cut,
      b_start=document_start[b_document] + b_start + b_front,
      b_length=b_length - b_cut,
      is_random=is_random,
      is_short=is_short,
      a_document=a_document,
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

  def _points(self, indices):
    """Returns each example's document and a token of it, the point."""
    number_of_pass, number = np.divmod(indices, self.examples_per_pass)
    key = _mix(self._key, number_of_pass.astype(np.uint64))
    number = _permute(number.astype(np.uint64), self.examples_per_pass, key)
    offset = _mix(key, np.uint64(1)) % np.uint64(self._num_stretched)
    place = (number.astype(np.int64) * self._span + offset.astype(np.int64)) % (
      self._num_stretched
    )
    document = np.searchsorted(self._stretched_ends, place, side="right")
    start, end = (
      self._stretched_starts[document],
      self._stretched_ends[document],
    )
    num_tokens = self.documents["num_tokens"][document]
    return document, (place - start) * num_tokens // (end - start)

  def _boundary(self, document, point):
    """Returns where B begins, and whether that is amid a sentence.

    Args:
      document: int64 [B].
      point: int64 [B], in tokens from the document's start.

    Returns:
      (boundary int64 [B], from 1 to the document's last token; bool [B]).
    """
    last = self.documents["num_sentences"][document] - 1
    following = np.minimum(self._sentence_at(document, point) + 1, last)
    boundary = self._sentence_start(document, following)
    too_far = np.abs(boundary - point) > self._span // 2
    is_amid = too_far | (boundary == 0)
    amid = np.clip(point, 1, self.documents["num_tokens"][document] - 1)
    return np.where(is_amid, amid, boundary), is_amid

  def _shares(self, document, boundary, target, draw):
    """Draws how the length is shared; A runs back to a sentence's start.

    Args:
      document: int64 [B].
      boundary: int64 [B], where A ends.
      target: int64 [B], tokens of A and B together.
      draw: `_Draw`.

    Returns:
      (tokens of A, tokens B should have) int64 [B].
    """
    behind = self.documents["num_tokens"][document] - boundary
    drawn = 1 + draw.integer("share", target - 1)
    wanted = np.minimum(np.maximum(drawn, target - behind), boundary)
    start = boundary - wanted
    sentence_start = self._sentence_start(
      document, self._sentence_at(document, start)
    )
    start = np.where(start - sentence_start > self._span, start, sentence_start)
    return boundary - start, np.minimum(target - wanted, behind)

  def _random_start(self, a_document, wanted, is_amid, draw):
    """Draws where a random B starts, in any document but the example's own.

    Args:
      a_document: int64 [B], documents to stay out of.
      wanted: int64 [B], tokens that B should have.
      is_amid: bool [B], whether B is to start amid a sentence.
      draw: `_Draw`.

    Returns:
      (document, start) int64 [B]; where the document is long enough, at least
      `wanted` tokens follow `start`.
    """
    own = self.documents["num_tokens"][a_document]
    own_start = self._token_ends[a_document] - own
    place = draw.integer("random place", self.num_tokens - own)
    place = np.where(place < own_start, place, place + own)
    document = np.searchsorted(self._token_ends, place, side="right")
    num_tokens = self.documents["num_tokens"][document]
    point = place - (self._token_ends[document] - num_tokens)
    latest = np.maximum(num_tokens - wanted, 0)
    boundary, _ = self._boundary(document, point)
    at_latest = self._sentence_start(
      document, self._sentence_at(document, latest)
    )
    start = np.where(boundary <= latest, boundary, at_latest)
    return document, np.where(is_amid, np.minimum(point, latest), start)

  def _sentence_start(self, document, sentence):
    """Returns the first token of a document's n-th sentence, int64 [B]."""
    at = self.documents["first_sentence"][document] + sentence
    return self._corpus.sentence_starts[at].astype(np.int64)

  def _sentence_at(self, document, token):
    """Returns which sentence of a document a token is in: a binary search."""
    low = np.zeros_like(token)
    high = self.documents["num_sentences"][document]
    while np.any(high - low > 1):
      middle = (low + high) // 2
      before = self._sentence_start(document, middle) <= token
      low, high = np.where(before, middle, low), np.where(before, high, middle)
    return low

  def _length_to_sentence_end(self, document, start, wanted):
    """Returns tokens from `start` to the end of the sentence that fills."""
    num_tokens = self.documents["num_tokens"][document]
    num_sentences = self.documents["num_sentences"][document]
    end = np.minimum(start + wanted, num_tokens)
    following = self._sentence_at(document, end - 1) + 1
    at = np.minimum(following, num_sentences - 1)
    sentence_end = np.where(
      following < num_sentences, self._sentence_start(document, at), num_tokens
    )
    # A cut must not part A from B by more than a span.
    return np.where(sentence_end - end > self._span, end, sentence_end) - start


def _excess(a_length, b_length, target):
  """Returns how much to cut from A and from B to get to `target` together.

  The longer side is cut until both are equal, then both in turn, as the
  original code's truncate_seq_pair does token by token.
  """
  half_up = (target + 1) // 2
  a_kept = np.minimum(a_length, np.maximum(target - b_length, half_up))
  b_kept = np.minimum(b_length, target - a_kept)
  return a_length - a_kept, b_length - b_kept


class _Draw:
  """Random numbers that depend on a key, an index and a name only."""

  def __init__(self, key, indices):
    self._base = _mix(key, indices.astype(np.uint64))

  def uniform(self, name):
    """Returns float64 [B] in [0, 1)."""
    return self._bits(name) / 2.0**53

  def integer(self, name, bound):
    """Returns int64 [B] in [0, bound); `bound` is far below 2**53."""
    return (self.uniform(name) * bound).astype(np.int64)

  def _bits(self, name):
    tag = np.uint64(zlib.crc32(name.encode()))
    return (_mix(self._base, tag) >> np.uint64(11)).astype(np.float64)


def _mix(*words):
  """Hashes uint64 words; arrays broadcast, and the result is an array."""
  state = np.zeros(1, np.uint64)
  for word in words:
    state = _finalise((state ^ word) + _GAMMA)
  return state


def _finalise(state):
  """Scrambles uint64 arrays one to one, as splitmix64 ends.

  Source: Steele, Lea and Flood, "Fast splittable pseudorandom number
  generators", 2014.
  """
  state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return state ^ (state >> np.uint64(31))


def _permute(numbers, size, key):
  """Permutes [0, size) by a keyed Feistel network with cycle walking.

  The numbers are cells of a table of about sqrt(size) rows and columns, so
  that few fall outside and walk on.

  Args:
    numbers: uint64 [B], each below `size`.
    size: int, how many numbers there are.
    key: uint64 [B], one permutation each.

  Returns:
    uint64 [B], each below `size`; a bijection for each key.
  """
  rows = np.uint64(math.isqrt(size - 1) + 1)
  columns = np.uint64(-(-size // int(rows)))
  numbers = numbers.copy()
  outside = np.arange(len(numbers))
  while len(outside):
    row, column = np.divmod(numbers[outside], columns)
    round_key = key[outside]
    for _ in range(_FEISTEL_ROUNDS // 2):
      row = (row + _mix(round_key, column) % rows) % rows
      column = (column + _mix(round_key, row) % columns) % columns
      round_key = round_key + _GAMMA
    numbers[outside] = walked = row * columns + column
    outside = outside[walked >= size]
  return numbers
