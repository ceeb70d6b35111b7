"""What the model sees of a data set: arrays of one shape, and their batches."""

import dataclasses
import functools
import zlib

import numpy as np

# Lengths come in multiples of this, so that few rows are mostly padding.
LENGTH_MULTIPLE = 32
# The label of a slot that no loss counts, as torch has it.
IGNORED = -100


@dataclasses.dataclass(frozen=True)
class Features:
  """A data set as the model sees it.

  A feature is one pass through the model; a long row may have several.

  Attributes:
    arrays: dict of numpy arrays [N, ...]: input_ids int32 [N, L], a_length and
      length int32 [N] as `segment_inputs` takes them and, where the rows are
      labelled, labels.
    row_of: int [N], the row that each feature is of.
    places: list of N: where a feature's tokens are in its row, as the task's
      decoding needs it.
  """

  arrays: dict
  row_of: np.ndarray
  places: list

  @property
  def max_seq_length(self):
    """L."""
    return self.arrays["input_ids"].shape[1]

  def __len__(self):
    return len(self.row_of)

  def fingerprint(self):
    """Returns a checksum of everything that training sees."""
    checksum = 0
    for name in sorted(self.arrays):
      checksum = zlib.crc32(np.ascontiguousarray(self.arrays[name]), checksum)
    return checksum


@dataclasses.dataclass(frozen=True)
class TrainingExamples:
  """The features in the order in which training sees them.

  A pure function of (seed, index), so that a resumed run sees what an
  undisturbed one does: example i is the one at place i % N of the order that
  pass i // N draws.

  Attributes:
    features: `Features`.
    seed: int.
  """

  features: Features
  seed: int

  def batch(self, indices):
    """Returns the arrays of some examples.

    Args:
      indices: int64 [B], any non-negative numbers.

    Returns:
      dict of numpy arrays [B, ...].
    """
    size = len(self.features)
    rows = [_order(self.seed, i // size, size)[i % size] for i in indices]
    return {name: array[rows] for name, array in self.features.arrays.items()}


@functools.lru_cache(maxsize=4)
def _order(seed, number, size):
  """Returns the order of pass `number` over `size` features."""
  return np.random.default_rng([seed, int(number)]).permutation(size)


def eval_batches(features, batch_size):
  """Yields every feature once, in order; the last batch repeats its end.

  Args:
    features: `Features`.
    batch_size: int.

  Yields:
    dict of numpy arrays [batch_size, ...], without labels.
  """
  for first in range(0, len(features), batch_size):
    rows = np.arange(first, first + batch_size).clip(max=len(features) - 1)
    yield {
      name: array[rows]
      for name, array in features.arrays.items()
      if name != "labels"
    }


def create_arrays(token_ids, num_b_tokens=0):
  """Pads token ids to one length, the smallest that suits all of them.

  Args:
    token_ids: list of lists of int, special tokens included.
    num_b_tokens: int [N], how many of them, the second [SEP] included, are of
      the second text.

  Returns:
    dict of input_ids int32 [N, L], a_length and length int32 [N].
  """
  lengths = np.array([len(ids) for ids in token_ids], np.int32)
  slots = -(-int(lengths.max()) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
  input_ids = np.zeros((len(token_ids), slots), np.int32)
  for i, ids in enumerate(token_ids):
    input_ids[i, : len(ids)] = ids
  # [CLS] and the first [SEP] are no tokens of A.
  a_length = np.asarray(lengths - num_b_tokens - 2, np.int32)
  return {"input_ids": input_ids, "a_length": a_length, "length": lengths}
