"""The vocabulary: its order, its size, and how well it cuts unseen text."""

import collections
import os
import pathlib
import random
import tempfile

import hypothesis
import pytest
import tokenizers
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, trainers

from bert_jax.config import default_config
from bert_jax.data import vocabulary
from bert_jax.data.sources import spec
from bert_jax.data.tokenization import (
  SPECIAL_TOKENS,
  WordRules,
  create_text_tokenizer,
  create_tokenizer,
)
from bert_jax.errors import UserError


@pytest.fixture(scope="module", name="addresses")
def _addresses():
  """The embedded corpus, a string per address."""
  found = spec.open_sources(default_config().corpus)
  return [
    document
    for source in found
    for block, _ in source.blocks(2**20)
    for document in block.documents()
  ]


@pytest.fixture(scope="module", name="words")
def _words(addresses):
  return vocabulary.normalize_counts(
    vocabulary.count_words(addresses[::10]), WordRules(lowercase=True)
  )


def test_words_are_those_of_berts_tokenizer():
  """Counted from raw words, or cut out of the whole text: the same counts."""
  rng = random.Random(0)
  pieces = [
    "Don't",
    "U.S.A.",
    "na\u00efve",
    "\u6f22\u5b57",
    "[MASK]",
    "x\u200by",
    "(\u2018so\u2019)",
    "1,000",
    "STRASSE",
    "",
    "e\u0301t\u00e9",
    "\x00",
    "w" * 101,
  ]
  documents = [
    "\n".join(" ".join(rng.choices(pieces, k=5)) for _ in range(20))
    for _ in range(20)
  ]
  for lowercase in (True, False):
    rules = WordRules(lowercase)
    tokenizer = create_text_tokenizer(SPECIAL_TOKENS, rules)
    expected = collections.Counter()
    for document in documents:
      text = tokenizer.normalizer.normalize_str(document)
      words = tokenizer.pre_tokenizer.pre_tokenize_str(text)
      expected.update(w for w, _ in words if len(w) <= 100)
    counts = vocabulary.count_words(documents)
    assert vocabulary.normalize_counts(counts, rules) == expected


@pytest.mark.parametrize("vocab_size", [400, 2000, 6001])
def test_exactly_as_many_entries_as_asked_for(words, vocab_size):
  vocab, _ = vocabulary.train_vocabulary(words, vocab_size)
  assert len(vocab) == len(set(vocab)) == vocab_size


def test_special_tokens_come_first_then_the_characters(words):
  """In the forms that occur: at a word's start, within it, or both."""
  vocab, left_out = vocabulary.train_vocabulary(words, 2000)
  assert left_out == []
  assert tuple(vocab[:5]) == SPECIAL_TOKENS
  starts = sorted({word[0] for word in words})
  others = sorted({"##" + c for word in words for c in word[1:]})
  assert vocab[5 : 5 + len(starts) + len(others)] == [*starts, *others]
  # So no word of the text is unknown.
  tokenizer = create_tokenizer(vocab, lowercase=True)
  ids = tokenizer.encode(" ".join(words)).ids
  assert tokenizer.token_to_id("[UNK]") not in ids


def test_the_rarest_characters_make_way_and_are_named():
  """30 % of the entries are for characters; the rest is words."""
  rare = [chr(0x4E00 + i) for i in range(200)]
  words = collections.Counter({c: i + 1 for i, c in enumerate(rare)})
  pairs = [a + b for a in "abcde" for b in "fghij"]
  words.update({a + b: 4000 for a in pairs for b in pairs})
  vocab, left_out = vocabulary.train_vocabulary(words, 120)
  # Of the letters, "a" to "e" also begin a word: 15 entries.
  kept = int(120 * 0.3) - 15
  assert len(vocab) == 120
  assert left_out == sorted(rare[: 200 - kept])
  assert not set(vocab) & set(left_out)


def test_text_of_isolated_characters_has_a_vocabulary():
  """BERT cuts around Chinese characters: there are no pieces but them."""
  characters = [chr(0x4E00 + i) for i in range(3000)]
  words = collections.Counter({c: i + 1 for i, c in enumerate(characters)})
  vocab, left_out = vocabulary.train_vocabulary(words, 4000)
  assert left_out == []
  assert sorted(vocab) == sorted([*SPECIAL_TOKENS, *characters])
  # The most frequent ones, where there is not room for all.
  vocab, left_out = vocabulary.train_vocabulary(words, 1000)
  assert len(vocab) == 1000
  assert left_out == characters[: 3000 - 995]


@pytest.mark.parametrize("vocab_size", [2000, 6000])
def test_every_piece_is_used_by_the_text_it_was_trained_on(words, vocab_size):
  """Byte pair encoding leaves 5 to 7 % that longest match never takes."""
  vocab, _ = vocabulary.train_vocabulary(words, vocab_size)
  tokenizer = create_tokenizer(vocab, lowercase=True)
  used = set(tokenizer.encode(" ".join(words)).tokens)
  assert len(set(vocab) - used - set(SPECIAL_TOKENS)) <= 0.002 * vocab_size


def test_the_same_words_give_the_same_bytes(tmp_path, words, monkeypatch):
  """In any order of counting, and on any number of cores."""
  shuffled = list(words.items())
  random.Random(1).shuffle(shuffled)
  again = collections.Counter(dict(shuffled))
  files = []
  for counts, cores in ((words, 1), (again, 8)):
    monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
    vocab, _ = vocabulary.train_vocabulary(counts, 3000)
    path = tmp_path / f"{cores}.txt"
    vocabulary.save_vocabulary(path, vocab)
    files.append(path.read_bytes())
  assert files[0] == files[1]


def test_a_text_of_few_pieces_gives_a_smaller_vocabulary():
  words = collections.Counter({"aa": 3, "ab": 2, "b": 1})
  vocab, left_out = vocabulary.train_vocabulary(words, 500)
  assert left_out == []
  assert set(vocab) >= {*SPECIAL_TOKENS, "a", "b", "aa", "ab"}
  assert len(vocab) < 12


def test_odd_words_do_not_disturb_the_training():
  """What sentencepiece keeps for itself is text like any other here."""
  odd = ["\u2581", "a\u2581b", "\u2585", "<", "s", "unk", "\u2047", "w" * 100]
  words = collections.Counter(dict.fromkeys(odd, 50))
  words.update({a + b: 20 for a in "abcdefgh" for b in "ijklmnop"})
  vocab, left_out = vocabulary.train_vocabulary(words, 90)
  assert left_out == []
  assert len(set(vocab)) == 90
  assert {"\u2581", "##\u2581", "\u2585"} <= set(vocab)


def _save(path, vocab):
  path.write_text("\n".join(vocab) + "\n", encoding="utf-8", newline="\n")
  return path


def test_a_given_vocabulary_is_read_as_it_is(tmp_path):
  """Order, case, unused slots, line separators: a line is a token."""
  vocab = ["[PAD]", "[unused0]", *SPECIAL_TOKENS[1:], "The", "##e", "\u2028"]
  path = _save(tmp_path / "vocab.txt", vocab)
  assert vocabulary.load_vocabulary(path) == vocab
  path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
  assert vocabulary.load_vocabulary(path) == vocab
  path.write_bytes(path.read_bytes().removesuffix(b"\r\n"))
  assert vocabulary.load_vocabulary(path) == vocab


@pytest.mark.parametrize(
  ("vocab", "message"),
  [
    (["[PAD]", "[UNK]", "[CLS]", "a"], r"lacks \[SEP\], \[MASK\]"),
    ([*SPECIAL_TOKENS, "a", "b", "a"], "lists 'a' more than once"),
    (
      [*SPECIAL_TOKENS, *map(str, range(96))],
      "has 101 tokens; expected at most 100",
    ),
    (None, "No such file"),
  ],
)
def test_an_unfit_vocabulary_is_refused(tmp_path, monkeypatch, vocab, message):
  monkeypatch.setattr(vocabulary, "MAX_VOCAB_SIZE", 100)
  path = tmp_path / "vocab.txt"
  if vocab:
    _save(path, vocab)
  with pytest.raises(UserError, match=message) as e:
    vocabulary.load_vocabulary(path)
  assert str(path) in str(e.value) and "\n" not in str(e.value)


@hypothesis.given(
  st.lists(
    st.text(
      st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"),
      min_size=1,
    ).filter(lambda token: token not in SPECIAL_TOKENS),
    unique=True,
  )
)
def test_a_vocabulary_comes_back_as_it_was_saved(tokens):
  vocab = [*SPECIAL_TOKENS, *tokens]
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "vocab.txt"
    vocabulary.save_vocabulary(path, vocab)
    assert vocabulary.load_vocabulary(path) == vocab


def test_a_vocabulary_in_another_encoding_is_refused(tmp_path):
  path = tmp_path / "vocab.txt"
  path.write_bytes("\n".join([*SPECIAL_TOKENS, "caf\u00e9"]).encode("latin-1"))
  with pytest.raises(UserError, match="utf-8"):
    vocabulary.load_vocabulary(path)


def _measure(tokenizer, documents):
  """Returns (tokens per word, share of unknown words)."""
  counts = vocabulary.normalize_counts(
    vocabulary.count_words(documents), WordRules(lowercase=True)
  )
  tokens = unknown = 0
  for word, count in counts.items():
    pieces = tokenizer.encode(word, add_special_tokens=False).tokens
    tokens += count * len(pieces)
    unknown += count * ("[UNK]" in pieces)
  return tokens / counts.total(), unknown / counts.total()


@pytest.mark.parametrize("vocab_size", [4000, 8000])
def test_as_good_as_the_wordpiece_trainer_on_unseen_text(addresses, vocab_size):
  """Fewer tokens per word, and no more unknown words."""
  train = [a for i, a in enumerate(addresses) if i % 5]
  held_out = addresses[::5]
  words = vocabulary.normalize_counts(
    vocabulary.count_words(train), WordRules(True)
  )
  vocab, _ = vocabulary.train_vocabulary(words, vocab_size)

  peer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
  peer.normalizer = normalizers.BertNormalizer(lowercase=True)
  peer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  peer.train_from_iterator(
    train,
    trainers.WordPieceTrainer(
      vocab_size=vocab_size,
      special_tokens=list(SPECIAL_TOKENS),
      show_progress=False,
    ),
  )
  ours = _measure(create_tokenizer(vocab, lowercase=True), held_out)
  theirs = _measure(peer, held_out)
  assert 1 < ours[0] < theirs[0]
  assert ours[1] <= theirs[1] + 1e-5
