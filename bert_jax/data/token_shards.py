"""The token ids of a corpus, in files of a fixed number of tokens each.

A file (a shard) is mapped into memory when one of its tokens is first asked
for, and copied from a bucket before that if the corpus lies there.
"""

import itertools

import numpy as np


def shard_name(number):
  """Returns the name of the n-th file of token ids, counted from 0."""
  return f"tokens-{number:05d}.bin"


class TokenShards:
  """Token ids of all shards, indexed as if they were one array.

  Attributes:
    dtype: of the ids, uint16 or uint32.
  """

  def __init__(self, map_shard, num_tokens, shard_tokens, dtype):
    """Maps nothing yet.

    Args:
      map_shard: function of a shard's number that returns its ids, an array.
      num_tokens: int, tokens of all shards.
      shard_tokens: int, tokens of each shard; the last one may have fewer.
      dtype: of the ids.
    """
    self.dtype = np.dtype(dtype)
    self._map_shard = map_shard
    self._num_tokens = num_tokens
    self._shard_tokens = shard_tokens
    self._shards = {}

  def __len__(self):
    return self._num_tokens

  def __getitem__(self, where):
    """Returns the ids at a slice without step, or at int64 [...] indices."""
    if isinstance(where, slice):
      start, stop, _ = where.indices(self._num_tokens)
      return self._run(start, max(start, stop))
    if self._num_tokens <= self._shard_tokens:
      return self._shard(0)[where]
    return self._take(where)

  def _shard(self, number):
    if number not in self._shards:
      self._shards[number] = self._map_shard(number)
    return self._shards[number]

  def _run(self, start, stop):
    """Returns the ids from `start` to `stop`."""
    size = self._shard_tokens
    parts = [
      self._shard(number)[max(start - number * size, 0) : stop - number * size]
      for number in range(start // size, -(-stop // size))
    ]
    if len(parts) == 1:
      return parts[0]
    return np.concatenate([np.zeros(0, self.dtype), *parts])

  def _take(self, indices):
    """Returns the ids at indices, which are looked up shard by shard."""
    shard, offset = np.divmod(indices.ravel(), self._shard_tokens)
    order = np.argsort(shard, kind="stable")
    numbers, first = np.unique(shard[order], return_index=True)
    found = np.empty(len(order), self.dtype)
    bounds = itertools.pairwise(np.append(first, len(order)))
    for number, (begin, end) in zip(numbers, bounds, strict=True):
      places = order[begin:end]
      found[places] = self._shard(int(number))[offset[places]]
    return found.reshape(indices.shape)
