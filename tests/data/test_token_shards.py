"""Token ids in several files are read like one array."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from bert_jax.data.token_shards import TokenShards

NUM_TOKENS = 100
IDS = np.random.default_rng(0).integers(0, 70_000, NUM_TOKENS, np.uint32)


def _make_shards(shard_tokens):
  """Returns (`TokenShards`, the list of shards that were mapped)."""
  mapped = []

  def map_shard(number):
    mapped.append(number)
    return IDS[number * shard_tokens :][:shard_tokens]

  shards = TokenShards(map_shard, NUM_TOKENS, shard_tokens, np.uint32)
  return shards, mapped


BOUNDS = st.none() | st.integers(-NUM_TOKENS - 5, NUM_TOKENS + 5)


@hypothesis.given(st.integers(1, 120), BOUNDS, BOUNDS)
def test_slices_are_those_of_an_array(shard_tokens, start, stop):
  shards, _ = _make_shards(shard_tokens)
  found = shards[start:stop]
  assert found.dtype == IDS.dtype
  np.testing.assert_array_equal(found, IDS[start:stop])


@hypothesis.given(
  st.integers(1, 120),
  st.lists(st.integers(0, NUM_TOKENS - 1)),
  st.sampled_from([1, 3]),
)
def test_indices_are_those_of_an_array(shard_tokens, indices, rows):
  shards, _ = _make_shards(shard_tokens)
  indices = np.array(indices * rows, np.int64).reshape(rows, -1)
  np.testing.assert_array_equal(shards[indices], IDS[indices])


@pytest.mark.parametrize(
  ("where", "needed"),
  [
    (slice(30, 60), [3, 4, 5]),
    (slice(31, 32), [3]),
    (np.array([[99, 12], [18, 95]]), [1, 9]),
  ],
)
def test_a_shard_is_mapped_when_it_is_needed_and_once(where, needed):
  shards, mapped = _make_shards(10)
  for _ in range(2):
    assert shards[where].size
  assert sorted(mapped) == needed
