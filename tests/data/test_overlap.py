"""Runs of tokens that an evaluation set shares with a corpus."""

import numpy as np

from bert_jax.data import overlap


def _runs(tokens):
  tokens = tokens.tolist()
  size = overlap.RUN_TOKENS
  return [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]


def test_shares_are_those_of_a_look_up(monkeypatch):
  """In a corpus read in pieces, against Python's sets."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(5, 60_000, 5000).astype(np.uint16)
  rows = [
    tokens[100:160],
    tokens[995:1012],  # over the border of two pieces
    np.concatenate([tokens[3000:3030], rng.integers(5, 99, 20)]),
    rng.integers(5, 60_000, 50),
    tokens[4990:],  # shorter than a run
    tokens[4987:],  # the corpus' last run
    np.zeros(0),
  ]
  rows = [np.asarray(row, np.uint16) for row in rows]
  monkeypatch.setattr(overlap, "_CHUNK_TOKENS", 1000)
  known = set(_runs(tokens))
  expected = [
    np.mean([run in known for run in _runs(row)]) if _runs(row) else -1
    for row in rows
  ]
  assert overlap.find_overlap(tokens, rows).tolist() == expected
  assert expected[0] == expected[1] == expected[5] == 1
  assert 0 < expected[2] < 1
  assert expected[3:5] == [0, -1]


def test_the_order_of_tokens_matters():
  tokens = np.arange(5, 5 + overlap.RUN_TOKENS, dtype=np.uint16)
  swapped = tokens.copy()
  swapped[[3, 4]] = swapped[[4, 3]]
  assert overlap.find_overlap(tokens, [tokens, swapped]).tolist() == [1, 0]
