"""Examples: what every row holds, and how often each text is in one.

Most tests run on corpora whose tokens all have different ids, so that a row of
ids tells by itself which stretch of which document it came from.
"""

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from bert_jax.data import corpus as corpus_lib
from bert_jax.data.draws import permute
from bert_jax.data.examples import Examples
from bert_jax.data.tokenization import SPECIAL_TOKENS

PAD_ID, _, CLS_ID, SEP_ID, _ = range(5)
FIRST_ID = len(SPECIAL_TOKENS)


def _make_corpus(documents, unique_ids=True):
  """Builds a corpus in memory from the sentence lengths of its documents."""
  records = np.zeros(len(documents), corpus_lib.DOCUMENT)
  sentence_starts = []
  num_tokens = 0
  for record, lengths in zip(records, documents, strict=True):
    record["start"] = num_tokens
    record["num_tokens"] = sum(lengths)
    record["first_sentence"] = len(sentence_starts)
    record["num_sentences"] = len(lengths)
    sentence_starts += [0, *itertools.accumulate(lengths[:-1])]
    num_tokens += sum(lengths)
  ids = np.arange(num_tokens) if unique_ids else np.zeros(num_tokens)
  vocab = [*SPECIAL_TOKENS, *(f"t{i}" for i in range(int(ids.max()) + 1))]
  return corpus_lib.Corpus(
    vocab=vocab,
    tokens=(ids + FIRST_ID).astype(np.uint16),
    sentence_starts=np.array(sentence_starts, np.uint32),
    documents=records,
    manifest={},
  )


def _draw_documents(kind):
  """Returns the sentence lengths of some documents, list of lists."""
  rng = np.random.default_rng(7)
  if kind == "long documents":
    return [rng.integers(3, 60, 60).tolist() for _ in range(30)]
  if kind == "short documents":
    counts = rng.integers(2, 6, 900)
    return [rng.integers(1, 30, count).tolist() for count in counts]
  if kind == "one-sentence documents":
    return [[int(n)] for n in rng.integers(2, 40, 2500)]
  if kind == "long sentences":
    return [
      [*rng.integers(1, 30, 4).tolist(), n, *rng.integers(1, 30, 3).tolist()]
      for n in (5000, 1200, 700, 300, 150, 100)
      for _ in range(3)
    ] + [[9000]]
  raise ValueError(kind)


KINDS = (
  "long documents",
  "short documents",
  "one-sentence documents",
  "long sentences",
)


@pytest.fixture(scope="module", name="corpora")
def _corpora():
  return {kind: _make_corpus(_draw_documents(kind)) for kind in KINDS}


def _make_examples(corpus, max_seq_length=128, seed=0, stream=0):
  return Examples(corpus, corpus.documents, max_seq_length, seed, stream)


def _read_row(row, length):
  """Takes a row of ids apart, by its [SEP]s; returns positions of A and B."""
  row = row.astype(np.int64)
  first, second = np.flatnonzero(row == SEP_ID)
  assert row[0] == CLS_ID
  assert second + 1 == length
  assert (row[length:] == PAD_ID).all()
  a, b = row[1:first] - FIRST_ID, row[first + 1 : second] - FIRST_ID
  for side in (a, b):
    assert len(side) > 0
    assert side.min() >= 0
    np.testing.assert_array_equal(side, np.arange(side[0], side[0] + len(side)))
  return a, b


@pytest.mark.parametrize("max_seq_length", [8, 128, 512])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_two_runs_of_text_and_a_label_that_is_true(
  corpora, kind, max_seq_length
):
  """[CLS] A [SEP] B [SEP]; label 0 if and only if B follows A."""
  corpus = corpora[kind]
  examples = _make_examples(corpus, max_seq_length)
  batch = examples.batch(np.arange(4000))
  assert batch["input_ids"].dtype == np.uint16
  assert batch["input_ids"].shape == (4000, max_seq_length)
  assert batch["input_ids"].max() < len(corpus.vocab)
  starts = corpus.documents["start"]
  for i in range(4000):
    length = batch["length"][i]
    assert FIRST_ID <= length <= max_seq_length
    a, b = _read_row(batch["input_ids"][i], length)
    assert len(a) == batch["a_length"][i]
    a_document, b_document = (
      np.searchsorted(starts, side[[0, -1]], side="right") for side in (a, b)
    )
    assert a_document[0] == a_document[1]  # never over a document's end
    assert b_document[0] == b_document[1]
    is_random = batch["next_sentence_labels"][i]
    assert is_random == (a_document[0] != b_document[0])
    if not is_random:
      # Only a cut at B's front parts them.
      gap = b[0] - a[-1] - 1
      assert 0 <= gap < max_seq_length


@pytest.mark.parametrize("kind", KINDS)
def test_half_of_the_labels_are_random_next(corpora, kind):
  """Within three sigma of 0.5 over 100,000 examples, in every stream."""
  num = 100_000
  for stream in range(3):
    pairs = _make_examples(corpora[kind], stream=stream).pairs(np.arange(num))
    assert abs(pairs.is_random.mean() - 0.5) < 3 * 0.5 / np.sqrt(num)
    assert ((pairs.a_document != pairs.b_document) == pairs.is_random).all()


def test_one_in_ten_aims_at_less_and_the_rest_fill_the_length(corpora):
  num = 100_000
  pairs = _make_examples(corpora["long documents"]).pairs(np.arange(num))
  sigma = np.sqrt(0.1 * 0.9 / num)
  assert abs(pairs.is_short.mean() - 0.1) < 3 * sigma
  length = pairs.a_length + pairs.b_length
  assert (length[~pairs.is_short] == 125).all()
  # The shorter aims are spread evenly over 2 to 124.
  short = length[pairs.is_short]
  assert (short.min(), short.max()) == (2, 124)
  assert abs(short.mean() - 63) < 3 * 123 / np.sqrt(12 * len(short))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_depends_on_its_indices_only(corpora, kind):
  """Any order, any slicing and any host split give the same rows."""
  indices = np.concatenate([np.arange(500), [10**9, 10**12 + 7]])
  whole = _make_examples(corpora[kind]).batch(indices)
  examples = _make_examples(corpora[kind])
  order = np.random.default_rng(0).permutation(len(indices))
  shuffled = examples.batch(indices[order])
  for name, rows in whole.items():
    np.testing.assert_array_equal(shuffled[name], rows[order])
  for num_hosts in (2, 3, 502):
    parts = [examples.batch(p) for p in np.array_split(indices, num_hosts)]
    for name, rows in whole.items():
      joined = np.concatenate([part[name] for part in parts])
      np.testing.assert_array_equal(joined, rows)


def test_seeds_and_streams_give_other_examples(corpora):
  """Rows that agree by chance are few."""
  first, *others = (
    _make_examples(corpora["long documents"], seed=seed, stream=stream).batch(
      np.arange(1000)
    )["input_ids"]
    for seed, stream in [(0, 0), (1, 0), (0, 1), (-1, 0)]
  )
  for other in others:
    assert (first == other).all(axis=1).mean() < 0.01


def test_the_permutation_is_one_to_one_for_every_size():
  for size in [*range(1, 100), 1000, 4096, 4097, 65_537, 99_991]:
    numbers = np.arange(size, dtype=np.uint64)
    key = np.full(size, 12345 + size, np.uint64)
    permuted = permute(numbers, size, key)
    np.testing.assert_array_equal(np.sort(permuted), numbers)


@hypothesis.given(st.integers(1, 2**40), st.integers(0, 2**64 - 1), st.data())
def test_the_permutation_of_any_size_keeps_numbers_apart(size, key, data):
  number = st.integers(0, size - 1)
  numbers = data.draw(st.lists(number, min_size=1, max_size=50, unique=True))
  keys = np.full(len(numbers), key, np.uint64)
  permuted = permute(np.array(numbers, np.uint64), size, keys)
  assert len(set(permuted.tolist())) == len(numbers)
  assert permuted.max() < size


def test_the_permutation_scatters_neighbours():
  """Neither order nor neighbourhood is left: correlations as of noise."""
  size = 50_000
  numbers = np.arange(size, dtype=np.uint64)
  first, second = (
    permute(numbers, size, np.full(size, key, np.uint64)).astype(np.float64)
    for key in (1, 2)
  )
  bound = 4 / np.sqrt(size)
  assert abs(np.corrcoef(first, numbers)[0, 1]) < bound
  assert abs(np.corrcoef(first, second)[0, 1]) < bound
  assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < bound


def test_every_pass_has_other_examples(corpora):
  """Two of 20 passes share few pairs of segments."""
  examples = _make_examples(corpora["long documents"])
  size = examples.examples_per_pass
  passes = []
  for number in range(20):
    pairs = examples.pairs(np.arange(number * size, (number + 1) * size))
    runs = (pairs.a_start, pairs.a_length, pairs.b_start, pairs.b_length)
    passes.append(set(zip(*runs, strict=True)))
  assert len(passes[0]) > 0.95 * size
  for first, second in itertools.combinations(passes, 2):
    assert len(first & second) < 0.1 * size


def _count_visits(examples, num_passes, num_tokens):
  """Returns how often each token was in an example, int64 [T]."""
  pairs = examples.pairs(np.arange(num_passes * examples.examples_per_pass))
  change = np.zeros(num_tokens + 1, np.int64)
  for start, length in (
    (pairs.a_start, pairs.a_length),
    (pairs.b_start, pairs.b_length),
  ):
    np.add.at(change, start, 1)
    np.add.at(change, start + length, -1)
  return np.cumsum(change)[:-1]


@pytest.mark.parametrize("max_seq_length", [128, 512])
@pytest.mark.parametrize("kind", KINDS)
def test_all_text_is_visited_about_equally_often(corpora, kind, max_seq_length):
  """Half to one and a half of the mean; no token is left out."""
  corpus = corpora[kind]
  examples = _make_examples(corpus, max_seq_length)
  num_passes = 300
  visits = _count_visits(examples, num_passes, len(corpus.tokens))
  visits = visits / visits.mean()
  num_tokens = corpus.documents["num_tokens"]
  per_document = np.add.reduceat(visits, corpus.documents["start"]) / num_tokens
  assert per_document.min() > 0.5
  assert per_document.max() < 1.5
  assert visits.min() > 0.15
  assert visits.max() < 2.5


@pytest.mark.parametrize("kind", KINDS)
def test_documents_first_and_last_tokens_are_visited_too(corpora, kind):
  """0.65 times the mean over all tokens at least, in three passes."""
  corpus = corpora[kind]
  visits = np.mean(
    [
      _count_visits(_make_examples(corpus, seed=seed), 3, len(corpus.tokens))
      for seed in range(20)
    ],
    axis=0,
  )
  first = corpus.documents["start"]
  last = first + corpus.documents["num_tokens"] - 1
  assert visits[first].mean() > 0.65 * visits.mean()
  assert visits[last].mean() > 0.65 * visits.mean()


def test_a_random_b_comes_from_all_other_documents_as_true_ones_do(corpora):
  """True and random Bs are in documents of each length equally often."""
  corpus = corpora["short documents"]
  pairs = _make_examples(corpus).pairs(np.arange(200_000))
  assert ((pairs.a_document != pairs.b_document) == pairs.is_random).all()
  num_documents = len(corpus.documents)
  random, true = (
    np.bincount(pairs.b_document[rows], minlength=num_documents)
    for rows in (pairs.is_random, ~pairs.is_random)
  )
  assert random.min() > 0
  # Of 900 documents few have a B of just the same length as another's.
  assert (np.quantile(random / true, [0.05, 0.95]) > [0.5, 1]).all()
  assert (np.quantile(random / true, [0.05, 0.95]) < [1, 2]).all()
  group = corpus.documents["num_tokens"] // 30
  by_length = np.bincount(group, random) / np.bincount(group, true)
  assert np.abs(by_length - 1).max() < 0.25


def test_a_repeated_document_is_no_other_document(corpora):
  """Where each document stands in the table four times, as weights have it."""
  corpus = corpora["short documents"]
  documents = np.repeat(corpus.documents[:40], 4)
  pairs = Examples(corpus, documents, 128, 0, 0).pairs(np.arange(50_000))
  a, b = (documents["start"][d] for d in (pairs.a_document, pairs.b_document))
  assert ((a != b) == pairs.is_random).all()


def test_every_b_meets_as_of_many_documents(corpora):
  """Of 30 long documents, each A meets Bs of the 29 others alike."""
  corpus = corpora["long documents"]
  pairs = _make_examples(corpus).pairs(np.arange(200_000))
  a, b = (d[pairs.is_random] for d in (pairs.a_document, pairs.b_document))
  met = np.bincount(a * 30 + b, minlength=900).reshape(30, 30)
  assert (np.diag(met) == 0).all()
  others = met[~np.eye(30, dtype=bool)]
  assert others.min() > 0.4 * others.mean()
  assert others.max() < 2.5 * others.mean()


def test_a_random_b_starts_anywhere_in_a_document_as_a_true_one_does(corpora):
  """Within 15 % in each of twenty equal parts of long documents."""
  corpus = corpora["long documents"]
  pairs = _make_examples(corpus).pairs(np.arange(200_000))
  record = corpus.documents[pairs.b_document]
  place = (pairs.b_start - record["start"]) / record["num_tokens"]
  part = (place * 20).astype(int)
  random, true = (
    np.bincount(part[rows], minlength=20)
    for rows in (pairs.is_random, ~pairs.is_random)
  )
  assert random.min() > 0.3 * random.mean()
  assert np.abs(random / true - 1).max() < 0.15


def _is_edge(corpus, places):
  """Returns whether a sentence begins (and another ends) at each place."""
  starts = np.repeat(
    corpus.documents["start"], corpus.documents["num_sentences"]
  )
  edges = np.append(starts + corpus.sentence_starts, len(corpus.tokens))
  return np.isin(places, edges)


def test_a_is_whole_sentences_and_b_is_cut_at_its_front_or_its_back(corpora):
  corpus = corpora["long documents"]
  pairs = _make_examples(corpus).pairs(np.arange(100_000))
  a_end = pairs.a_start + pairs.a_length
  assert _is_edge(corpus, pairs.a_start).mean() > 0.95
  assert _is_edge(corpus, a_end).mean() > 0.95
  front = ~_is_edge(corpus, pairs.b_start)
  back = ~_is_edge(corpus, pairs.b_start + pairs.b_length)
  assert 0.4 < front.mean() < 0.6
  assert 0.4 < back.mean() < 0.6


def test_sequences_are_full():
  """At 128 and 512, documents of 2,000 tokens: 0.97 and 0.94 at least."""
  rng = np.random.default_rng(5)
  documents = [rng.integers(5, 50, 70).tolist() for _ in range(400)]
  corpus = _make_corpus(documents, unique_ids=False)
  for max_seq_length, least in ((128, 0.97), (512, 0.94)):
    pairs = _make_examples(corpus, max_seq_length).pairs(np.arange(20_000))
    length = (pairs.a_length + pairs.b_length + 3)[~pairs.is_short]
    assert length.mean() / max_seq_length > least
