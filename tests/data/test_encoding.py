"""Token ids are those of transformers; sentences are those of a reader."""

import random
import unicodedata

import hypothesis
import numpy as np
import pytest
import transformers
from hypothesis import strategies as st

from bert_jax.data import encoding
from bert_jax.data.encoding import EncodingRules
from bert_jax.data.tokenization import SPECIAL_TOKENS, WordRules

_ENGLISH = (
  "The quick brown fox doesn't jump over 13 lazy dogs (or 1,234.5 of them).",
  'U.S. senators said, "We\'ll see..." -- e.g. on Jan. 3rd, 1999 at 5:30 p.m.!',
  "A state-of-the-art e-mail to someone@example.org costs $3.50/month [sic].",
)
_NASTY = (
  "",
  " ",
  "   leading and trailing   ",
  "tabs\tand\u00a0no-break\u2003em\u3000ideographic\u2009thin\u202fnarrow",
  "spaces",
  "zero\u200bwidth\u200cnon\u200djoiner\ufeffmark\u2060word\u00adsoft hyphen",
  "NUL\x00in\x00the middle \x00 alone, bell\x07, \x1b[31mred\x1b[0m, \x7f,",
  "\x85",
  "replacement \ufffd character\ufffd\ufffd glued\ufffdin",
  "line\u2028separator\u2029paragraph\x0bvertical\x0cfeed\rreturn",
  "caf\u00e9 cafe\u0301 \u00c5ngstr\u00f6m A\u030angstro\u0308m na\u00efve",
  "\u1ec7 e\u0323\u0302",
  "\u0301 begins with a mark, x \u0301 y, \u0301\u0302\u0303",
  "\u0130stanbul I\u0131i\u0130 \u0130\u0307 DI\u015eARI",
  "Stra\u00dfe STRASSE \u1e9e GRO\u1e9e",
  "\u039f\u0394\u03a5\u03a3\u03a3\u0395\u03a5\u03a3 \u03c3\u03c2\u03a3",
  "\u03b1\u03a3.",
  "\u6f22\u5b57\u3068\u3072\u3089\u304c\u306a\u30ab\u30bf\u30ab\u30ca\u3002\ud55c\uad6d\uc5b4",
  "\u4e2d\u6587abc\u4e2d123\u6587",
  "\U00020000\U0002a6d6\uf900\u2f80 x\u4e00y",
  "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
  "\U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea a\U0001f600b \u2764\ufe0f",
  "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
  "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
  "\u200f123\u200e \u064b\u064c",
  "\u0939\u093f\u0928\u094d\u0926\u0940",
  "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22 \u1f00\u03bd\u1f71",
  "\u10d0\u10d1\u10d2 \u0540\u0561\u0575",
  "[MASK] [SEP] a[MASK]b [CLS]. ([UNK]) [PAD][PAD] [mask] [ MASK ] [[MASK]]",
  "x[SEP]y [MASK]s [MASK], [CLS][SEP] [MASK\u200b] [MA\x00SK] ][MASK][",
  "[UNK]\u0301",
  "##ing ##s a##b # ## ### \u2581under\u2581 \u2585",
  "x" * 100,
  "x" * 101,
  "y" * 99 + "." + "z" * 150 + "-" + "w" * 100,
  "\u00e9" * 100 + " " + "e\u0301" * 60 + " " + "\u6f22" * 150,
  "1 12 123 1234 12345 3.14159 1e10 0x1F \u00bd \u00b2 \u2167",
  "\u0661\u0662\u0663 \uff11\uff12",
  "\ufb01ne \ufb03 \u01c4 \u01c6 \uff21\uff42\uff43 \u2460 \u2122 \u00a9",
  "\u20ac5 \u00a35 5\u2032",
  "\u201cquotes\u201d \u2018single\u2019 \u00abguillemets\u00bb",
  "\u2014dash\u2014 \u2026 \u3001\uff01\uff1f \u00bfque\u00a1",
)
# Latin to Cyrillic, Hebrew to Devanagari, Thai to Ethiopic, Greek extended,
# punctuation and symbols, kana to Hangul, compatibility forms, emoji, ancient.
_BLOCKS = (
  (0x20, 0x52F),
  (0x590, 0x97F),
  (0xE00, 0x139F),
  (0x1E00, 0x1FFF),
  (0x2000, 0x2BFF),
  (0x3000, 0x9FFF),
  (0xAC00, 0xD7A3),
  (0xF900, 0xFFFF),
  (0x10000, 0x10FFF),
  (0x1F000, 0x1FAFF),
  (0x20000, 0x2FFFF),
)
_NUM_RANDOM_LINES = 1500


def _lines():
  """Returns a few thousand lines that tokenizers are known to differ on."""
  rng = random.Random(11)
  lines = [*_ENGLISH, *_NASTY]
  lines += [unicodedata.normalize(f, t) for f in ("NFC", "NFD") for t in _NASTY]
  ascii_pairs = [chr(a) + chr(b) for a in range(128) for b in range(128)]
  pairs = [pair for pair in ascii_pairs if "\n" not in pair]
  lines += [" ".join(pairs[i : i + 10]) for i in range(0, len(pairs), 10)]
  lines += ["".join(pairs[i : i + 10]) for i in range(0, len(pairs), 10)]
  pieces = [p for line in lines[:90] for p in line.split(" ")] + [" ", " ", ""]
  lines += [" ".join(rng.choices(pieces, k=8)) for _ in range(600)]
  lines += ["".join(rng.choices(pieces, k=5)) for _ in range(600)]
  for _ in range(_NUM_RANDOM_LINES):
    first, last = rng.choice(_BLOCKS)
    codes = [rng.randint(first, last) for _ in range(12)]
    lines.append(
      "".join(rng.choice(("", "", " ", "a")) + chr(c) for c in codes)
    )
  return [line.replace("\n", " ") for line in lines]


def _vocab(lines, lowercase):
  """Returns a vocabulary with half of the characters and some longer pieces."""
  rng = random.Random(5)
  text = " ".join(lines)
  text = text + text.lower() + unicodedata.normalize("NFD", text.lower())
  characters = sorted({c for c in text if not c.isspace() and c != "\x00"})
  known = [c for c in characters if c.isascii() or rng.random() < 0.5]
  words = "the qu ##ick jump over dog ##s said see month ing ##ing mask sep"
  vocab = [*SPECIAL_TOKENS, *known, *("##" + c for c in known), *words.split()]
  if not lowercase:
    vocab += ["The", "MA", "##SK", "\u00c5ng", "Stra\u00dfe"]
  return list(dict.fromkeys(vocab))


@pytest.fixture(scope="module", name="lines")
def _fixture_lines():
  lines = _lines()
  assert len(lines) > 5000
  return lines


def _encoder(vocab, lowercase, one_sentence_per_line, **word_rules):
  rules = EncodingRules(
    WordRules(lowercase, **word_rules), one_sentence_per_line
  )
  return encoding.Encoder(vocab, rules)


def _encode(encoder, document):
  return encoder.encode([document]).tokens.tolist()


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip_accents", [None, True, False])
def test_ids_equal_those_of_transformers(
  tmp_path, lines, lowercase, strip_accents
):
  """In text, where a special token that is spelled out is plain text."""
  vocab = _vocab(lines, lowercase)
  path = tmp_path / "vocab.txt"
  path.write_text("\n".join(vocab) + "\n", encoding="utf-8", newline="\n")
  tokenizer = transformers.BertTokenizer(
    str(path),
    do_lower_case=lowercase,
    strip_accents=strip_accents,
    split_special_tokens=True,
  )
  encoder = _encoder(vocab, lowercase, True, strip_accents=strip_accents)
  ids = tokenizer(lines, add_special_tokens=False)["input_ids"]
  known = 0
  for line, expected in zip(lines, ids, strict=True):
    assert _encode(encoder, line) == expected, ascii(line)
    known += sum(token != 1 for token in expected)
  assert known > 30_000  # and not [UNK] against [UNK]
  # Again, when every word is remembered.
  everything = encoder.encode(lines)
  assert everything.tokens.tolist() == [token for row in ids for token in row]


@pytest.mark.parametrize("lowercase", [True, False])
def test_splitting_sentences_changes_no_id(lines, lowercase):
  vocab = _vocab(lines, lowercase)
  whole = _encoder(vocab, lowercase, True)
  split = _encoder(vocab, lowercase, False)
  # Of the random ones, some hold a sentence's end amid what is one word.
  for line in lines[:-_NUM_RANDOM_LINES]:
    assert _encode(split, line) == _encode(whole, line), ascii(line)


def test_forgetting_words_changes_no_id(lines, monkeypatch):
  vocab = _vocab(lines, True)
  expected = _encoder(vocab, True, True).encode(lines)
  monkeypatch.setattr(encoding, "_MAX_REMEMBERED_WORDS", 50)
  forgetful = _encoder(vocab, True, True)
  found = forgetful.encode(lines)
  np.testing.assert_array_equal(found.tokens, expected.tokens)
  assert len(forgetful._ids) <= 50


def _sentences(text, one_per_line=False, language="en"):
  """Returns the sentences of a document as lists of one token per letter."""
  letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
  vocab = [*SPECIAL_TOKENS, *letters, *("##" + c for c in letters)]
  encoder = _encoder(vocab, True, one_per_line)
  encoded = encoder.encode([text], language)
  ends = np.cumsum(encoded.sentence_lengths)
  parts = np.split(encoded.tokens, ends[:-1])
  return ["".join(vocab[t].strip("#") for t in p if t > 4) for p in parts]


@pytest.mark.parametrize(
  ("text", "sentences"),
  [
    ("One is here. Two is there.", ["oneishere", "twoisthere"]),
    ("Is it? It is! So.", ["isit", "itis", "so"]),
    ("Dr. Smith met Mr. Jones. They ate.", ["drsmithmetmrjones", "theyate"]),
    ("He moved to the U.S. in May.", ["hemovedtotheusinmay"]),
    ("It rose by 3.5 percent.", ["itrosebypercent"]),
    (
      'She said, "Stay here. Do not go." He left.',
      ["shesaidstayheredonotgo", "heleft"],
    ),
  ],
)
def test_sentences_end_where_a_reader_ends_them(text, sentences):
  assert _sentences(text) == sentences


def test_a_line_is_a_sentence_if_the_text_says_so():
  text = "One is here. Two is there.\nThree is\nfour"
  assert _sentences(text, one_per_line=True) == [
    "oneisheretwoisthere",
    "threeis",
    "four",
  ]
  assert _sentences(text) == ["oneishere", "twoisthere", "threeis", "four"]


def test_documents_keep_their_sentences_apart():
  """Counts, bytes and hashes are those of each document by itself."""
  documents = [
    "One. Two.\nThree.",
    "\x00 \u200b",
    "Caf\u00e9.",
    "One. Two.\nThree.",
  ]
  vocab = [*SPECIAL_TOKENS, "one", "two", "three", "cafe", "."]
  encoded = _encoder(vocab, True, False).encode(documents)
  assert encoded.document_sentences.tolist() == [3, 0, 1, 3]
  assert encoded.sentence_lengths.tolist() == [2] * 7
  assert encoded.counts["num_text_bytes"] == sum(
    len(d.encode()) for d in documents
  )
  assert encoded.hashes[0] == encoded.hashes[3]
  assert len(set(encoded.hashes.tolist())) == 3


def test_spelled_special_tokens_are_text_and_counted():
  """ "[SEP]" in text must not end a sentence for the model."""
  vocab = [*SPECIAL_TOKENS, "[", "]", "sep", "mask", "a"]
  encoded = _encoder(vocab, True, True).encode(["a [SEP] a[MASK]\n[SEPP]"])
  assert not set(encoded.tokens.tolist()) & {0, 2, 3, 4}
  assert encoded.counts["num_spelled_special_tokens"] == 2


def test_lost_characters_are_counted():
  """Characters of words that become [UNK]: too long, or with a rare letter."""
  vocab = [*SPECIAL_TOKENS, *"ab.", "##a", "##b"]
  text = f"ab \u6f22. ax.ab {'a' * 101} xx\nxx b"
  encoded = _encoder(vocab, True, True).encode([text, "ab"])
  assert encoded.counts["num_lost_characters"] == 1 + 2 + 101 + 2 + 2
  assert encoded.counts["num_characters"] == len("".join(text.split())) + 2


def test_long_words_are_cut_if_asked_for():
  vocab = [*SPECIAL_TOKENS, "a", "##a", "\u0e01", "##\u0e01", "."]
  word = "\u0e01" * 250
  whole = _encoder(vocab, True, True)
  assert _encode(whole, f"{word}.") == [1, vocab.index(".")]
  cut = _encoder(vocab, True, True, split_long_words=True)
  found = [vocab[i] for i in _encode(cut, f"{word}. {'a' * 100}")]
  assert found.count("[UNK]") == 0
  assert "".join(t.strip("#") for t in found) == word + "." + "a" * 100
  starts = [i for i, t in enumerate(found) if not t.startswith("##")]
  assert starts == [0, 100, 200, 250, 251]
  assert cut.encode([word]).counts["num_lost_characters"] == 0


@hypothesis.given(st.lists(st.text("abcdE .,!-\n", max_size=40), max_size=20))
def test_ids_spell_the_text_again(lines):
  """Every letter and mark, in order, but for spaces and case."""
  letters = "abcde.,!-"
  vocab = [
    *SPECIAL_TOKENS,
    *letters,
    *(f"##{x}" for x in letters),
    "ab",
    "##ca",
  ]
  text = "\n".join(lines)
  ids = _encoder(vocab, True, False).encode([text]).tokens
  spelled = "".join(vocab[i].removeprefix("##") for i in ids)
  assert spelled == "".join(text.lower().split())


def test_hashes_are_of_the_token_ids():
  """Spaces, case and line breaks do not make another document."""
  vocab = [*SPECIAL_TOKENS, "one", "two", "."]
  documents = ["One two.", "one  TWO .", "one\ntwo.", "two one."]
  hashes = _encoder(vocab, True, False).encode(documents).hashes
  assert hashes[0] == hashes[1] == hashes[2] != hashes[3]


@pytest.mark.parametrize(
  ("vocab_size", "token_bytes"), [(65_536, 2), (65_537, 4), (119_547, 4)]
)
def test_ids_past_two_bytes_take_four(vocab_size, token_bytes):
  vocab = [*SPECIAL_TOKENS, *(f"w{i}" for i in range(vocab_size - 5))]
  last = vocab_size - 1
  encoded = _encoder(vocab, True, True).encode([f"w0 w{last - 5}\nw7", "w1"])
  assert encoded.tokens.tolist() == [5, last, 12, 6]
  assert encoded.tokens.itemsize == token_bytes
  assert encoded.sentence_lengths.tolist() == [2, 1, 1]
