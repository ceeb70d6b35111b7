"""Counts and the loss of guessing by frequency, against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import log_loss

from bert_jax.data.corpus import DOCUMENT, Corpus
from bert_jax.data.word_frequency import count_tokens, frequency_loss


def _make_corpus(rng):
  lengths = rng.integers(1, 50, 30)
  documents = np.zeros(30, DOCUMENT)
  documents["num_tokens"] = lengths
  documents["start"] = np.cumsum(lengths) - lengths
  tokens = rng.zipf(1.5, lengths.sum()) % 20
  return Corpus(
    vocab=[f"t{i}" for i in range(20)],
    tokens=tokens.astype(np.uint16),
    sentence_starts=np.zeros(30, np.uint32),
    documents=documents,
    manifest={},
  )


def _tokens(corpus, documents):
  return np.concatenate(
    [corpus.tokens[d["start"] :][: d["num_tokens"]] for d in documents]
  )


def test_tokens_of_the_given_documents_are_counted():
  """Every other one, and one that stands there twice."""
  corpus = _make_corpus(np.random.default_rng(0))
  documents = corpus.documents[[0, 1, 2, 5, 5, 9]]
  expected = np.bincount(_tokens(corpus, documents), minlength=20)
  np.testing.assert_array_equal(count_tokens(corpus, documents), expected)


def test_guessing_by_frequency_scores_the_cross_entropy():
  corpus = _make_corpus(np.random.default_rng(1))
  training, held_out = corpus.documents[:20], corpus.documents[20:]
  counts = np.bincount(_tokens(corpus, training), minlength=20) + 1
  tokens = _tokens(corpus, held_out)
  predicted = np.tile(counts / counts.sum(), (len(tokens), 1))
  expected = log_loss(tokens, predicted, labels=np.arange(20))
  found = frequency_loss(corpus, training, held_out)
  assert found == pytest.approx(expected)
