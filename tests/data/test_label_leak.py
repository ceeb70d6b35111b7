"""Nothing but the text of A and B tells the next-sentence label.

Classifiers see the rows of a batch. In the corpora here a token's id says
whether it is the first, second, last or last but one of its sentence and of its
document, and nothing else: a classifier that does better than the majority has
found a rule by which B was chosen or cut.
"""

import itertools

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from bert_jax.data import corpus as corpus_lib
from bert_jax.data import examples as examples_lib
from bert_jax.data.examples import Examples
from bert_jax.data.tokenization import SPECIAL_TOKENS

NUM_ROLES = 5**2
VOCAB = [*SPECIAL_TOKENS, *(f"r{i}" for i in range(NUM_ROLES))]


def _uniform(rng, size):
  return [
    rng.integers(3, 60, rng.integers(20, 120)).tolist()
    for _ in range(size // 4)
  ]


def _log_normal(rng, size):
  counts = np.maximum(1, rng.lognormal(2.2, 1.2, size)).astype(int)
  return [
    np.maximum(1, rng.lognormal(2.8, 0.6, n)).astype(int).tolist()
    for n in counts
  ]


def _articles_and_single_sentences(rng, size):
  counts = rng.integers(2, 60, size)
  counts[rng.random(size) < 0.4] = 1
  return [rng.integers(5, 45, n).tolist() for n in counts]


def _short(rng, size):
  return [rng.integers(3, 40, rng.integers(2, 5)).tolist() for _ in range(size)]


CORPORA = {
  "uniform": _uniform,
  "log-normal": _log_normal,
  "articles and single sentences": _articles_and_single_sentences,
  "short": _short,
}


def _role(index, length):
  """Returns 0 to 4: first, second, last but one, last, or amid."""
  role = np.full(len(index), 4)
  for number, place in ((2, length - 2), (1, 1), (3, length - 1), (0, 0)):
    role[index == place] = number
  return role


def _within(lengths):
  """Returns each token's index in its run, and the length of the run."""
  starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
  return np.arange(lengths.sum()) - starts, np.repeat(lengths, lengths)


def _make_corpus(documents):
  """Builds a corpus whose ids are roles, from its sentences' lengths."""
  sentences = np.array(list(itertools.chain(*documents)))
  records = np.zeros(len(documents), corpus_lib.DOCUMENT)
  records["num_tokens"] = [sum(lengths) for lengths in documents]
  records["num_sentences"] = [len(lengths) for lengths in documents]
  for total, count in (
    ("start", "num_tokens"),
    ("first_sentence", "num_sentences"),
  ):
    records[total] = np.cumsum(records[count]) - records[count]
  starts = np.cumsum(sentences) - sentences
  starts -= np.repeat(records["start"], records["num_sentences"])
  ids = _role(*_within(sentences)) * 5 + _role(*_within(records["num_tokens"]))
  return corpus_lib.Corpus(
    vocab=VOCAB,
    tokens=(ids + len(SPECIAL_TOKENS)).astype(np.uint16),
    sentence_starts=starts.astype(np.uint32),
    documents=records,
    manifest={},
  )


def _features(kind, max_seq_length, num_rows):
  """Returns (lengths [R, 6], edge ids [R, 4], labels [R]) of examples.

  The corpus grows with the rows: were a few documents seen again and again,
  their lengths could be learnt by heart.
  """
  documents = CORPORA[kind](np.random.default_rng(1), num_rows // 5)
  corpus = _make_corpus(documents)
  examples = Examples(corpus, corpus.documents, max_seq_length, 0, 0)
  batch = examples.batch(np.arange(num_rows))
  a, total = (batch[name].astype(np.int64) for name in ("a_length", "length"))
  b = total - a - 3
  rows = np.arange(num_rows)
  edges = [
    batch["input_ids"][rows, at]
    for at in (np.ones_like(a), a, a + 2, total - 2)
  ]
  sizes = np.stack([a, b, total], 1)
  lengths = np.concatenate([sizes, np.log1p(sizes)], 1)
  return lengths, np.stack(edges, 1), batch["next_sentence_labels"]


def _score(classifier, features, labels):
  """Returns by how many standard errors it beats the majority."""
  half = len(labels) // 2
  classifier.fit(features[:half], labels[:half])
  score = classifier.score(features[half:], labels[half:])
  share = labels[half:].mean()
  base = max(share, 1 - share)
  return (score - base) / np.sqrt(base * (1 - base) / half)


def _regressions(lengths, edges, labels):
  """Returns the scores of logistic regressions on both and on each."""
  lengths = StandardScaler().fit_transform(lengths)
  edges = OneHotEncoder(sparse_output=False).fit_transform(edges)
  return {
    name: _score(LogisticRegression(max_iter=500), features, labels)
    for name, features in (
      ("lengths", lengths),
      ("edges", edges),
      ("both", np.concatenate([lengths, edges], 1)),
    )
  }


@pytest.mark.parametrize("max_seq_length", [128, 512])
@pytest.mark.parametrize("kind", CORPORA)
def test_a_regression_on_lengths_and_edges_finds_no_label(kind, max_seq_length):
  found = _regressions(*_features(kind, max_seq_length, 20_000))
  assert max(found.values()) < 3, found


def _candidates(kind, max_seq_length, num_rows, monkeypatch):
  """Returns the number of B's first and last role, of true and of random Bs.

  Both are candidates of the same examples, int64 [2, num_rows]: all labels are
  made 0, then 1.
  """
  uniform = examples_lib.Draw.uniform
  documents = CORPORA[kind](np.random.default_rng(1), num_rows // 5)
  corpus = _make_corpus(documents)
  examples = Examples(corpus, corpus.documents, max_seq_length, 0, 0)
  found = []
  for value in (0.9, 0.1):
    monkeypatch.setattr(
      examples_lib.Draw,
      "uniform",
      lambda draw, name, value=value: (
        np.full(num_rows, value) if name == "label" else uniform(draw, name)
      ),
    )
    pairs = examples.pairs(np.arange(num_rows))
    assert (pairs.is_random == (value < 0.5)).all()
    ends = pairs.b_start, pairs.b_start + pairs.b_length - 1
    first, last = (corpus.tokens[at].astype(np.int64) for at in ends)
    found.append(first * len(VOCAB) + last)
  return np.stack(found)


@pytest.mark.parametrize("max_seq_length", [128, 512])
@pytest.mark.parametrize("kind", CORPORA)
def test_the_true_and_the_random_b_begin_and_end_alike(
  kind, max_seq_length, monkeypatch
):
  """A sign test for each pair of roles, on both candidates of an example.

  Sees what takes a regression ten times as many rows. Some 40 pairs of roles
  are frequent enough in each of 8 cases; 4 deviations are one in 16,000.
  """
  true, random = _candidates(kind, max_seq_length, 20_000, monkeypatch)
  differs = true != random
  counts = [
    np.bincount(roles[differs], minlength=len(VOCAB) ** 2)
    for roles in (true, random)
  ]
  total = counts[0] + counts[1]
  frequent = total >= 50
  deviations = (counts[0] - counts[1])[frequent] / np.sqrt(total[frequent])
  assert frequent.sum() > 3
  assert np.abs(deviations).max() < 4


@pytest.mark.slow
@pytest.mark.parametrize("max_seq_length", [128, 512])
@pytest.mark.parametrize("kind", CORPORA)
def test_no_classifier_finds_the_label_in_many_examples(kind, max_seq_length):
  """Logistic regressions, and boosted trees on all features together.

  Thirty-two comparisons in all: were there no leak, one of them would be past
  three standard errors in four of a hundred choices of seeds.
  """
  lengths, edges, labels = _features(kind, max_seq_length, 200_000)
  found = _regressions(lengths, edges, labels)
  found["trees"] = _score(
    HistGradientBoostingClassifier(categorical_features=range(6, 10)),
    np.concatenate([lengths, edges], 1),
    labels,
  )
  assert max(found.values()) < 3, found


def test_a_label_in_the_cut_would_be_found():
  """The regressions see a B that ends its document only if it is the true."""
  lengths, edges, labels = _features("short", 128, 20_000)
  last = _role(np.array([7]), np.array([8]))[0] * 6 + len(SPECIAL_TOKENS)
  edges[:, 3] = np.where(labels == 0, last, edges[:, 3])
  found = _regressions(lengths, edges, labels)
  assert found["edges"] > 3 and found["both"] > 3
