"""Training examples as a pure function of (seed, phase, index).

There is no shuffle buffer and no iterator state: any host can compute any row
of any batch at once, so a resumed run and a run on other hosts see the very
same examples.

How example `i` is found, all of it vectorised over a batch:

1. Lay the documents end to end, each stretched to at least one full span of
   `max_seq_length - 3` tokens, and place a point every span, at an offset
   drawn anew for every pass over the corpus. The i-th point, in the order of a
   keyed permutation, is where the passage of example `i` is centred.
2. The passage starts at a sentence, stays in its document, and runs to the end
   of the sentence that fills the length; one in ten gets a shorter target.
3. A sentence boundary drawn inside the passage parts A from B. For half of the
   examples B is then replaced: by text from the boundary of a passage around a
   point drawn uniformly over the tokens of all OTHER documents. A is chosen
   before the label is, so nothing about A tells the label.
4. What is too long is cut from the longer side, at its front or its back.
"""

import dataclasses
import zlib

import numpy as np

# BERT, appendix A.2 and the original code's short_seq_prob.
SHORT_PROBABILITY = 0.1
NUM_SPECIAL_TOKENS = 3  # [CLS] A [SEP] B [SEP]
_MIN_TARGET_TOKENS = 2  # one for A, one for B
_FEISTEL_ROUNDS = 4


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
    self._key = _mix(np.uint64(seed), np.uint64(stream))
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
      dict of `input_ids` uint16 [B, L], `a_length` int32 [B] (tokens of A),
      `length` int32 [B] (tokens in all, specials included) and
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
    start, boundary = self._passage(a_document, point, target, draw)
    is_random = draw.uniform("label") < 0.5
    a_length = boundary - start
    b_document, b_start = self._random_boundary(
      a_document, target, target - a_length, draw
    )
    b_document = np.where(is_random, b_document, a_document)
    b_start = np.where(is_random, b_start, boundary)
    b_length = self._length_to_sentence_end(
      b_document, b_start, target - a_length
    )
    a_cut, b_cut = _excess(a_length, b_length, target)
    a_front = np.where(draw.uniform("cut a") < 0.5, a_cut, 0)
    b_front = np.where(draw.uniform("cut b") < 0.5, b_cut, 0)
    document_start = self.documents["start"]
    return Pairs(
      a_start=document_start[a_document] + start + a_front,
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
    """Returns each example's document and the point its passage is around."""
    number_of_pass, number = np.divmod(indices, self.examples_per_pass)
    key = _mix(self._key, number_of_pass.astype(np.uint64))
    number = _permute(number.astype(np.uint64), self.examples_per_pass, key)
    offset = _mix(key, np.uint64(1)) % np.uint64(self._num_stretched)
    place = (number.astype(np.int64) * self._span + offset.astype(np.int64)) % (
      self._num_stretched
    )
    document = np.searchsorted(self._stretched_ends, place, side="right")
    return document, place - self._stretched_starts[document]

  def _random_boundary(self, a_document, target, wanted, draw):
    """Draws where a random B starts, in any document but the example's own.

    Args:
      a_document: int64 [B], documents to stay out of.
      target: int64 [B], tokens of the passage around the place drawn.
      wanted: int64 [B], tokens that B should have.
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
    point = place - (
      self._token_ends[document] - self.documents["num_tokens"][document]
    )
    _, boundary = self._passage(document, point, target, draw.again())
    latest = np.maximum(self.documents["num_tokens"][document] - wanted, 0)
    at_latest = self._sentence_start(
      document, self._sentence_at(document, latest)
    )
    return document, np.where(boundary <= latest, boundary, at_latest)

  def _passage(self, document, point, target, draw):
    """Lays a passage around a point and draws the boundary inside it.

    Args:
      document: int64 [B].
      point: int64 [B], in tokens from the document's start.
      target: int64 [B], tokens wanted.
      draw: `_Draw`.

    Returns:
      (start, boundary) int64 [B], in tokens from the document's start, with
      start < boundary.
    """
    num_tokens = self.documents["num_tokens"][document]
    latest = np.maximum(num_tokens - target, 0)
    wanted = np.clip(point - target // 2, 0, latest)
    first = self._sentence_at(document, wanted)
    start = self._sentence_start(document, first)
    end = np.minimum(start + target, num_tokens)
    last = self._sentence_at(document, end - 1)
    choices = last - first
    chosen = first + 1 + draw.integer("boundary", np.maximum(choices, 1))
    boundary = self._sentence_start(document, np.minimum(chosen, last))
    # A passage of one sentence is parted between any two of its tokens.
    within = (
      start
      + 1
      + draw.integer("boundary within", np.maximum(end - start - 1, 1))
    )
    return start, np.where(choices > 0, boundary, within)

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
    end = np.where(
      following < num_sentences, self._sentence_start(document, at), num_tokens
    )
    return end - start


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

  def __init__(self, key, indices, round_number=0):
    self._key = key
    self._indices = indices
    self._round = round_number
    self._base = _mix(key, indices.astype(np.uint64), np.uint64(round_number))

  def again(self):
    """Returns draws independent of these under the same names."""
    return _Draw(self._key, self._indices, self._round + 1)

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
  """Hashes uint64 words (arrays broadcast) with splitmix64's finaliser.

  Source: Steele, Lea and Flood, "Fast splittable pseudorandom number
  generators", 2014.
  """
  state = np.uint64(0x9E3779B97F4A7C15)
  with np.errstate(over="ignore"):
    for word in words:
      state = (state ^ word) * np.uint64(0x9E3779B97F4A7C15)
      state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
      state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
      state = state ^ (state >> np.uint64(31))
  return state


def _permute(numbers, size, key):
  """Permutes [0, size) by a keyed Feistel network with cycle walking.

  Args:
    numbers: uint64 [B], each below `size`.
    size: int, how many numbers there are.
    key: uint64 [B], one permutation each.

  Returns:
    uint64 [B], each below `size`; a bijection for each key.
  """
  half_bits = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
  low_mask = (np.uint64(1) << half_bits) - np.uint64(1)
  numbers, size = numbers.copy(), np.uint64(size)
  outside = np.ones(len(numbers), bool)
  while np.any(outside):
    left, right = numbers >> half_bits, numbers & low_mask
    for i in range(_FEISTEL_ROUNDS):
      left, right = right, left ^ (_mix(key, right, np.uint64(i)) & low_mask)
    walked = (left << half_bits) | right
    numbers = np.where(outside, walked, numbers)
    outside &= numbers >= size
  return numbers
