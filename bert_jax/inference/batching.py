"""Token rows, and batches of them in few shapes, each of which is compiled."""

import dataclasses
import itertools

import numpy as np

# Batches are padded to this times a power of two.
_SHORTEST = 16


@dataclasses.dataclass(frozen=True)
class TokenRow:
  """A row as the model reads it.

  Attributes:
    ids: int32 [tokens], [CLS] A [SEP], and B [SEP] where there is a second
      text.
    a_length: tokens of A.
    is_cut: whether the row was longer and was cut.
  """

  ids: np.ndarray
  a_length: int
  is_cut: bool = False


def encode(tokenizer, text, pair=None):
  """Turns a text or a pair to a `TokenRow`."""
  encoding = tokenizer.encode(text, pair)
  # Copied, since the encoding holds all that was cut off too.
  return TokenRow(
    ids=np.array(encoding.ids, np.int32),
    a_length=len(encoding.ids) - sum(encoding.type_ids) - 2,
    is_cut=bool(encoding.overflowing),
  )


def iterate_batches(rows, batch_size, max_length):
  """Yields batches of rows of about one length, longest first.

  Args:
    rows: list of `TokenRow`.
    batch_size: rows of a batch; the last one is filled up with empty texts.
    max_length: the model's longest row.

  Yields:
    (indices of the rows, (input_ids int32 [B, L], a_length and length int32
    [B])).
  """
  order = sorted(range(len(rows)), key=lambda i: -len(rows[i].ids))
  for start in range(0, len(order), batch_size):
    chosen = order[start : start + batch_size]
    yield chosen, _pad([rows[i] for i in chosen], batch_size, max_length)


def round_up(number, shortest=1):
  """Returns the least power of two times `shortest` that holds a number."""
  rounded = shortest
  while rounded < number:
    rounded *= 2
  return rounded


def _pad(rows, batch_size, max_length):
  longest = max(len(row.ids) for row in rows)
  slots = min(round_up(longest, _SHORTEST), max_length)
  ids = np.zeros((batch_size, slots), np.int32)
  # Rows that fill the batch read as empty texts.
  a_length = np.zeros(batch_size, np.int32)
  length = np.full(batch_size, 2, np.int32)
  for i, row in enumerate(rows):
    ids[i, : len(row.ids)] = row.ids
    a_length[i], length[i] = row.a_length, len(row.ids)
  return ids, a_length, length


def chunks(rows, size=1024):
  """Yields lists of at most `size` rows of an iterable."""
  rows = iter(rows)
  while chunk := list(itertools.islice(rows, size)):
    yield chunk
