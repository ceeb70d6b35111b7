"""Examples: what every row holds, and how often each text is in one.

Most tests run on corpora whose tokens all have different ids, so that a row of
ids tells by itself which stretch of which document it came from.
"""

import itertools

import numpy as np
import pytest

from bert_jax.data import corpus as corpus_lib
from bert_jax.data.examples import Examples, _excess, _permute
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
  is_short = examples.pairs(np.arange(4000)).is_short
  assert batch["input_ids"].dtype == np.uint16
  assert batch["input_ids"].shape == (4000, max_seq_length)
  assert batch["input_ids"].max() < len(corpus.vocab)
  starts = corpus.documents["start"]
  sentences = np.concatenate(_draw_documents(kind))
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
      gap = b[0] - a[-1] - 1
      # Only a cut parts them, of no more than ran over at either end.
      assert 0 <= gap < 2 * min(sentences.max(), max_seq_length - 2)
      assert gap == 0 or length == max_seq_length or is_short[i]


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
    permuted = _permute(numbers, size, key)
    np.testing.assert_array_equal(np.sort(permuted), numbers)


def test_the_permutation_scatters_neighbours():
  """Neither order nor neighbourhood is left: correlations as of noise."""
  size = 50_000
  numbers = np.arange(size, dtype=np.uint64)
  first, second = (
    _permute(numbers, size, np.full(size, key, np.uint64)).astype(np.float64)
    for key in (1, 2)
  )
  bound = 4 / np.sqrt(size)
  assert abs(np.corrcoef(first, numbers)[0, 1]) < bound
  assert abs(np.corrcoef(first, second)[0, 1]) < bound
  assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < bound


def test_every_pass_has_other_boundaries(corpora):
  """What the second pass shares with the first is what chance gives."""
  examples = _make_examples(corpora["long documents"])
  size = examples.examples_per_pass
  passes = []
  for number in range(20):
    pairs = examples.pairs(np.arange(number * size, (number + 1) * size))
    runs = zip(pairs.a_start, pairs.a_length, strict=True)
    passes.append(set(runs))
  assert len(passes[0]) > 0.9 * size
  for other in passes[1:]:
    assert len(passes[0] & other) < 0.2 * size


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


def test_a_random_b_comes_from_all_other_documents_by_their_size(corpora):
  """Chi-square over documents, expected by tokens, own document left out."""
  corpus = corpora["short documents"]
  pairs = _make_examples(corpus).pairs(np.arange(400_000))
  num_tokens = corpus.documents["num_tokens"]
  a, b = (d[pairs.is_random] for d in (pairs.a_document, pairs.b_document))
  assert (a != b).all()
  shares = num_tokens / (num_tokens.sum() - num_tokens[:, None])
  np.fill_diagonal(shares, 0)
  expected = np.bincount(a, minlength=len(num_tokens)) @ shares
  seen = np.bincount(b, minlength=len(num_tokens))
  chi_square = ((seen - expected) ** 2 / expected).sum()
  freedom = len(num_tokens) - 1
  assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)


def test_a_random_b_may_start_anywhere_in_a_long_document(corpora):
  """Chi-square over twenty equal parts of each document."""
  corpus = corpora["long documents"]
  pairs = _make_examples(corpus).pairs(np.arange(200_000))
  record = corpus.documents[pairs.b_document]
  place = (pairs.b_start - record["start"]) / record["num_tokens"]
  seen = np.bincount((place[pairs.is_random] * 20).astype(int), minlength=20)
  # The last ones begin earlier, at a sentence that leaves room for B.
  assert np.abs(seen[1:-2] / seen.mean() - 1).max() < 0.15
  assert seen.min() > 0.6 * seen.mean()


def _ks_statistic(x, y):
  """Returns the largest difference of two empirical distributions."""
  values = np.union1d(x, y)
  below = (
    np.searchsorted(np.sort(side), values, side="right") / len(side)
    for side in (x, y)
  )
  return np.abs(np.subtract(*below)).max()


@pytest.mark.parametrize("max_seq_length", [128, 512])
def test_no_length_tells_the_label(max_seq_length):
  """Two-sample Kolmogorov-Smirnov, p 0.001, of A's, B's and the sum's length.

  The corpus is large, so that its own accidents do not show, and its documents
  have sentences of different style.
  """
  rng = np.random.default_rng(3)
  documents = [
    (rng.integers(3, 60, 300) // rng.choice([1, 3]) + 1).tolist()
    for _ in range(1500)
  ]
  corpus = _make_corpus(documents, unique_ids=False)
  pairs = _make_examples(corpus, max_seq_length).pairs(np.arange(100_000))
  bound = 1.95 * np.sqrt(4 / 100_000)
  for length in (
    pairs.a_length,
    pairs.b_length,
    pairs.a_length + pairs.b_length,
  ):
    random, following = length[pairs.is_random], length[~pairs.is_random]
    assert _ks_statistic(random, following) < bound


def _is_edge(corpus, places):
  """Returns whether a sentence begins (and another ends) at each place."""
  starts = np.repeat(
    corpus.documents["start"], corpus.documents["num_sentences"]
  )
  edges = np.append(starts + corpus.sentence_starts, len(corpus.tokens))
  return np.isin(places, edges)


def test_no_cut_tells_the_label(corpora):
  """A random B begins and ends amid a sentence as often as a true one."""
  corpus = corpora["long documents"]
  pairs = _make_examples(corpus).pairs(np.arange(100_000))
  for edge in (pairs.b_start, pairs.b_start + pairs.b_length):
    whole = _is_edge(corpus, edge)
    random, following = whole[pairs.is_random], whole[~pairs.is_random]
    assert abs(random.mean() - following.mean()) < 0.015


def test_truncation_is_that_of_the_original_code():
  """One token at a time from the longer side, from B where they are equal."""

  def truncate(a, b, target):
    a_cut = b_cut = 0
    while a + b - a_cut - b_cut > target:
      if a - a_cut > b - b_cut:
        a_cut += 1
      else:
        b_cut += 1
    return a_cut, b_cut

  for target in (2, 3, 8, 15):
    grid = [(a, b) for a in range(1, 40) for b in range(1, 40)]
    a, b = np.array(grid).T
    a_cut, b_cut = _excess(a, b, np.full(len(a), target))
    expected = np.array([truncate(*lengths, target) for lengths in grid])
    np.testing.assert_array_equal(np.stack([a_cut, b_cut], 1), expected)
    assert ((a - a_cut > 0) & (b - b_cut > 0)).all()


def test_front_and_back_are_cut_equally_often(corpora):
  """A cut leaves a side that begins, or one that ends, amid a sentence."""
  corpus = corpora["long documents"]
  pairs = _make_examples(corpus).pairs(np.arange(100_000))
  for start, length in (
    (pairs.a_start, pairs.a_length),
    (pairs.b_start, pairs.b_length),
  ):
    front = ~_is_edge(corpus, start)
    back = ~_is_edge(corpus, start + length)
    assert front.mean() > 0.2
    assert abs(front.mean() - back.mean()) < 0.01


def test_sequences_are_full():
  """At 128 and 512, documents of 2,000 tokens: 0.97 and 0.94 at least."""
  rng = np.random.default_rng(5)
  documents = [rng.integers(5, 50, 70).tolist() for _ in range(400)]
  corpus = _make_corpus(documents, unique_ids=False)
  for max_seq_length, least in ((128, 0.97), (512, 0.94)):
    pairs = _make_examples(corpus, max_seq_length).pairs(np.arange(20_000))
    length = (pairs.a_length + pairs.b_length + 3)[~pairs.is_short]
    assert length.mean() / max_seq_length > least
