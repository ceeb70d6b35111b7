"""What the model sees of a data set: arrays, and batches of a few lengths."""

import dataclasses
import functools
import zlib

import numpy as np

# Batches come in multiples of so many slots, the tile of a TPU's and a CPU's
# vector units.
LENGTH_MULTIPLE = 8
# Rows of so many batches at most are sorted by length at a time.
WINDOW_BATCHES = 128
# Label of a token that the losses leave out (torch's `ignore_index`).
IGNORED = -100


@dataclasses.dataclass(frozen=True)
class Features:
  """A data set as the model sees it.

  A feature is one input sequence of the model; a long row may have several.

  Attributes:
    arrays: dict of numpy arrays [N, ...]: input_ids int32 [N, L], a_length and
      length int32 [N] as `segment_inputs` takes them and, where the rows are
      labelled, labels. A feature of several texts has them as [N, T, L] and
      [N, T]. token_type_ids, shaped as input_ids, are there where a_length
      does not say them.
    row_of: int [N], the row that each feature is of.
    places: list of N: where a feature's tokens lie in its row; what an entry
      holds is the task's (see its `encode`).
    lengths: ascending ints, the slots that a batch may have; the last is L.
    per_token: names of the arrays whose last dimension is slots.
  """

  arrays: dict
  row_of: np.ndarray
  places: list
  lengths: tuple[int, ...]
  per_token: tuple[str, ...] = ("input_ids", "token_type_ids")

  @property
  def max_seq_length(self):
    """L."""
    return self.lengths[-1]

  def __len__(self):
    return len(self.row_of)

  @functools.cached_property
  def buckets(self):
    """Index into `lengths` of the fewest slots that hold a feature, int [N]."""
    tokens = self.arrays["length"].reshape(len(self), -1).max(1)
    return np.searchsorted(self.lengths, tokens)

  def take(self, rows):
    """Returns the arrays of some features, cut to the slots they need.

    Args:
      rows: int [B].

    Returns:
      dict of numpy arrays [B, ...]; their slots are one of `lengths`.
    """
    slots = self.lengths[self.buckets[rows].max()]
    return {
      name: array[rows][..., :slots] if name in self.per_token else array[rows]
      for name, array in self.arrays.items()
    }

  def fingerprint(self):
    """Returns a checksum of all arrays, int below 2**32."""
    checksum = 0
    for name in sorted(self.arrays):
      checksum = zlib.crc32(np.ascontiguousarray(self.arrays[name]), checksum)
    return checksum


@dataclasses.dataclass(frozen=True)
class TrainingExamples:
  """The batches of a run, each of features of about one length.

  A pure function of (seed, step), so that a resumed run sees what an
  undisturbed one does. Epoch after epoch draws an order of the features. The
  features of a window, so many batches in that order, are sorted by bucket and
  cut into batches, and these are taken in an order drawn for the window. So a
  feature is seen once an epoch, and which others are in its batch is drawn
  anew each time.

  Attributes:
    features: `Features`.
    seed: int.
    batch_size: features a step, over all processes.
    num_steps: of the run.
  """

  features: Features
  seed: int
  batch_size: int
  num_steps: int

  def batch(self, indices):
    """Returns the arrays of some features of one step.

    Args:
      indices: int64 [rows], numbers in [step * batch_size, (step + 1) *
        batch_size): those of the step that this process feeds.

    Returns:
      dict of numpy arrays [rows, ...]; their slots are those of the step.
    """
    batch = self.features.take(self.rows(int(indices[0]) // self.batch_size))
    here = indices % self.batch_size
    return {name: array[here] for name, array in batch.items()}

  def rows(self, step):
    """Returns the features of a step, int [batch_size]."""
    number = step % self._window_batches
    return self._window(step - number)[number]

  @property
  def _window_batches(self):
    """Batches of a window: at most an epoch, so no batch has a row twice."""
    return min(WINDOW_BATCHES, len(self.features) // self.batch_size) or 1

  def _window(self, first):
    """Returns the features of the window that begins with a step, int [W, B].

    The last window ends with the run.
    """
    batches = min(self._window_batches, self.num_steps - first)
    places = np.arange(batches * self.batch_size) + first * self.batch_size
    rows = _rows_at(self.seed, places, len(self.features))
    rows = rows[np.argsort(self.features.buckets[rows], kind="stable")]
    draw = np.random.default_rng([self.seed, first, 1]).permutation(batches)
    return rows.reshape(batches, -1)[draw]

  def slots(self):
    """Returns the slots of every step's batch, list of int."""
    lengths, buckets = self.features.lengths, self.features.buckets
    slots = []
    for first in range(0, self.num_steps, self._window_batches):
      slots += [
        lengths[longest] for longest in buckets[self._window(first)].max(1)
      ]
    return slots


def _rows_at(seed, places, size):
  """Returns the features at places counted over all epochs, int [P]."""
  epochs = np.unique(places // size)
  orders = [_order(seed, epoch, size) for epoch in epochs]
  return np.concatenate(orders)[places - epochs[0] * size]


@functools.lru_cache(maxsize=4)
def _order(seed, epoch, size):
  """Returns the order of one epoch over `size` features."""
  return np.random.default_rng([seed, int(epoch)]).permutation(size)


def eval_batches(features, batch_size):
  """Yields every feature once, those of one bucket together.

  Args:
    features: `Features`.
    batch_size: int.

  Yields:
    (rows: int [batch_size], the features of the batch, of which the last of a
    bucket repeat its last one; dict of numpy arrays [batch_size, ...], without
    labels).
  """
  for bucket in range(len(features.lengths)):
    rows = np.flatnonzero(features.buckets == bucket)
    for first in range(0, len(rows), batch_size):
      chosen = np.arange(first, first + batch_size).clip(max=len(rows) - 1)
      arrays = features.take(rows[chosen])
      arrays.pop("labels", None)
      yield rows[chosen], arrays


def create_features(token_ids, data, num_b_tokens=0, row_of=None, places=None):
  """Pads token ids, and chooses the lengths that batches will have.

  Args:
    token_ids: list of lists of int, special tokens included.
    data: settings `data`: max_seq_length and num_lengths.
    num_b_tokens: int [N], how many of them, the second [SEP] included, are of
      the second text.
    row_of: see `Features`; a feature a row by default.
    places: see `Features`.

  Returns:
    `Features` without labels.
  """
  length = np.array([len(ids) for ids in token_ids], np.int32)
  lengths = choose_lengths(length, data.num_lengths, data.max_seq_length)
  input_ids = np.zeros((len(token_ids), lengths[-1]), np.int32)
  for i, ids in enumerate(token_ids):
    input_ids[i, : len(ids)] = ids
  # [CLS] and the first [SEP] are no tokens of A.
  a_length = np.asarray(length - num_b_tokens - 2, np.int32)
  return Features(
    arrays={"input_ids": input_ids, "a_length": a_length, "length": length},
    row_of=np.arange(len(token_ids)) if row_of is None else np.array(row_of),
    places=[None] * len(token_ids) if places is None else places,
    lengths=lengths,
  )


def choose_lengths(tokens, num_lengths, max_seq_length):
  """Chooses the slots that batches may have, so that padding is least.

  Args:
    tokens: int [N], the features' lengths.
    num_lengths: how many to choose at most; each is compiled.
    max_seq_length: no batch is longer.

  Returns:
    ascending tuple of ints: multiples of `LENGTH_MULTIPLE`, but that none
    exceeds `max_seq_length`. Of all such choices it gives the fewest slots in
    all when every feature is padded to the next of them.
  """
  tiles = -(-np.asarray(tokens) // LENGTH_MULTIPLE)
  longest = int(tiles.max())
  # How many features take at most i tiles.
  within = np.cumsum(np.bincount(tiles, minlength=longest + 1))
  slots = np.minimum(
    LENGTH_MULTIPLE * np.arange(longest + 1), max_seq_length
  ).tolist()

  def with_longest(choice, j, i):
    """Adds length i to a choice for the features of at most j tiles."""
    padded = slots[i] * (within[i] - within[j])
    return choice[0] + padded, (*choice[1], slots[i])

  # Fewest slots for all features of at most i tiles, and the choice; the
  # first with one length, then with one more each time.
  best = [(slots[i] * within[i], (slots[i],)) for i in range(longest + 1)]
  for _ in range(num_lengths - 1):
    best = [
      min(
        [best[i], *(with_longest(best[j], j, i) for j in range(1, i))],
        key=lambda choice: (choice[0], len(choice[1])),
      )
      for i in range(longest + 1)
    ]
  return best[longest][1]
