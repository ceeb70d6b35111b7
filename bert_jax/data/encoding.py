"""Documents to token ids: each distinct word is encoded once and remembered."""

import array
import collections
import dataclasses
import functools
import hashlib
import re

import numpy as np

from bert_jax.data import vocabulary
from bert_jax.data.sentences import create_splitter
from bert_jax.data.tokenization import (
  MAX_WORD_CHARS,
  SPECIAL_TOKENS,
  WordRules,
  create_text_tokenizer,
  split_plain,
  split_words,
  token_dtype,
)

# Distinct words that an encoder remembers; about 200 bytes each.
_MAX_REMEMBERED_WORDS = 1_000_000
_SPELLED_SPECIAL = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
# Columns at which text is usually wrapped by hand or by an editor.
_WRAPPED_CHARS = range(45, 91)


@dataclasses.dataclass(frozen=True)
class EncodingRules:
  """How documents become token ids.

  Attributes:
    words: `WordRules`.
    one_sentence_per_line: if True, lines are sentences already.
    skip_bad_rows: if True, records and lines that can't be read are counted
      and skipped; otherwise the first one is an error.
  """

  words: WordRules
  one_sentence_per_line: bool = False
  skip_bad_rows: bool = False


@dataclasses.dataclass(frozen=True)
class EncodedDocuments:
  """Token ids of some documents, end to end.

  Attributes:
    tokens: uint16 or uint32 [T], see `tokenization.token_dtype`.
    sentence_lengths: uint32 [S], tokens of each sentence.
    document_sentences: uint32 [N], sentences of each document.
    hashes: uint64 [N], of each document's token ids.
    sources: uint16 [N], number of each document's source.
    counts: Counter of what the report adds up over the corpus, int each:
      num_text_bytes (UTF-8), num_characters and num_lost_characters (without
      white space; lost are those of words that become [UNK]), num_lines,
      num_wrapped_lines (about as long as editors wrap, cut amid a sentence),
      num_spelled_special_tokens, num_skipped_rows.
    problems: list of str, the first rows that were skipped.
  """

  tokens: np.ndarray
  sentence_lengths: np.ndarray
  document_sentences: np.ndarray
  hashes: np.ndarray
  sources: np.ndarray
  counts: collections.Counter
  problems: list


class _WordMemo(dict):
  """Remembers each word's ids as bytes: {word: ids of the corpus' dtype}.

  A plain word with punctuation is put together from its parts, which are few,
  and a part needs no more of the tokenizer than its last stage: all of it is a
  hundred times slower than a look-up, the last stage thirty times.

  Attributes:
    lost: {word: characters that became [UNK]} of remembered words with any.
  """

  def __init__(self, vocab, rules):
    super().__init__()
    self.lost = {}
    self._tokenizer = create_text_tokenizer(vocab, rules)
    self._model = self._tokenizer.model
    self._rules = rules
    self._unknown_id = vocab.index("[UNK]")
    self._typecode = np.dtype(token_dtype(len(vocab))).char

  def __missing__(self, word):
    lost = 0
    parts = split_plain(word) if len(word) <= MAX_WORD_CHARS else None
    if parts is None:
      parts = split_words(self._tokenizer, self._rules, word)
      encoded, lost = self._encode(parts)
    elif len(parts) == 1:
      plain = word.lower() if self._rules.lowercase else word
      encoded, lost = self._encode([plain])
    else:
      encoded = b"".join(map(self.__getitem__, parts))
      lost = sum(self.lost.get(part, 0) for part in parts)
    if len(self) >= _MAX_REMEMBERED_WORDS:
      self.clear()
      self.lost.clear()
    self[word] = encoded
    if lost:
      self.lost[word] = lost
    return encoded

  def _encode(self, words):
    """Returns (ids as bytes, characters lost) of normalised words."""
    ids, lost = array.array(self._typecode), 0
    for word in words:
      pieces = [token.id for token in self._model.tokenize(word)]
      ids.extend(pieces)
      lost += len(word) if pieces == [self._unknown_id] else 0
    return ids.tobytes(), lost


class Encoder:
  """Splits documents into sentences and sentences into token ids.

  The ids of a sentence are those of its space-separated words, one after the
  other: WordPiece never looks past a space. So each distinct word is encoded
  once.
  """

  def __init__(self, vocab, rules):
    """Prepares an encoder.

    Args:
      vocab: list of tokens.
      rules: `EncodingRules`.
    """
    self._ids = _WordMemo(vocab, rules.words)
    self._rules = rules
    self._dtype = np.dtype(token_dtype(len(vocab)))
    unknown = np.array(vocab.index("[UNK]"), self._dtype)
    self._unknown = unknown.tobytes()

  def encode(self, documents, language="en", source=0):
    """Encodes documents of one source.

    Args:
      documents: list of str, one paragraph (or sentence) a line.
      language: ISO 639 code for the sentence splitter.
      source: int, number of the source.

    Returns:
      `EncodedDocuments`; sentences without any token are dropped.
    """
    split = self._splitter(language)
    sentences, document_sentences, hashes = [], [], []
    counts = collections.Counter()
    for document in documents:
      found = []
      lines = document.split("\n")
      for line in lines:
        for sentence in split(line):
          words = sentence.split(" ")
          ids = b"".join(map(self._ids.__getitem__, words))
          if ids:
            found.append(ids)
          if self._unknown in ids:
            lost = (self._ids.lost.get(word, 0) for word in words)
            counts["num_lost_characters"] += sum(lost)
      sentences += found
      document_sentences.append(len(found))
      hashes.append(hash_tokens(b"".join(found)))
      _count(document, lines, counts)
    width = self._dtype.itemsize
    lengths = [len(s) // width for s in sentences]
    return EncodedDocuments(
      tokens=np.frombuffer(b"".join(sentences), self._dtype),
      sentence_lengths=np.array(lengths, np.uint32),
      document_sentences=np.array(document_sentences, np.uint32),
      hashes=np.array(hashes, np.uint64),
      sources=np.full(len(documents), source, np.uint16),
      counts=counts,
      problems=[],
    )

  def _splitter(self, language):
    if self._rules.one_sentence_per_line:
      return lambda line: [line]
    return create_splitter(language)


def _count(document, lines, counts):
  """Adds what the report says of a document's text to `counts`."""
  counts["num_text_bytes"] += len(document.encode())
  spaces = document.count(" ") + document.count("\n")
  counts["num_characters"] += len(document) - spaces
  counts["num_lines"] += len(lines)
  counts["num_wrapped_lines"] += sum(
    len(line) in _WRAPPED_CHARS and (line[-1].isalpha() or line[-1] == ",")
    for line in lines
  )
  if "[" in document:
    spelled = _SPELLED_SPECIAL.findall(document)
    counts["num_spelled_special_tokens"] += len(spelled)


def encode(vocab_path, rules, pieces):
  """Encodes blocks of text by an encoder that this process keeps.

  Args:
    vocab_path: `pathlib.Path` of a vocab.txt.
    rules: `EncodingRules`.
    pieces: list of `SourcePiece`.

  Returns:
    `EncodedDocuments`.

  Raises:
    UserError: text that can't be read, unless the rules skip it.
  """
  encoder = _create_encoder(vocab_path, rules)
  problems = [] if rules.skip_bad_rows else None
  encoded = [
    encoder.encode(
      piece.block.documents(problems), piece.language, piece.source
    )
    for piece in pieces
  ]
  return join_encoded(encoded, problems or [])


def count_words(skip_bad_rows, pieces):
  """Counts the space-separated words of a list of `SourcePiece`, a Counter."""
  problems = [] if skip_bad_rows else None
  return vocabulary.count_words(
    document for piece in pieces for document in piece.block.documents(problems)
  )


def join_encoded(encoded, problems):
  """Joins a list of `EncodedDocuments` into one, with the rows skipped."""
  arrays = {
    name: np.concatenate([getattr(e, name) for e in encoded])
    for name in (
      "tokens",
      "sentence_lengths",
      "document_sentences",
      "hashes",
      "sources",
    )
  }
  counts = sum((e.counts for e in encoded), collections.Counter())
  counts["num_skipped_rows"] = len(problems)
  return EncodedDocuments(**arrays, counts=counts, problems=problems[:3])


@functools.lru_cache(maxsize=1)
def _create_encoder(vocab_path, rules):
  return Encoder(vocabulary.load_vocabulary(vocab_path), rules)


def hash_tokens(ids):
  """Returns 64 bits that name a document: int, from its ids as bytes."""
  return int.from_bytes(hashlib.blake2b(ids, digest_size=8).digest(), "big")
