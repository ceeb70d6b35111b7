"""Documents to token ids, as fast as a dictionary look-up per word."""

import array
import dataclasses
import functools
import hashlib

import numpy as np
import sentencex

from bert_jax.data.tokenization import create_tokenizer, split_plain
from bert_jax.data.vocabulary import load_vocabulary

# Distinct words that an encoder remembers; about 200 bytes each.
_MAX_REMEMBERED_WORDS = 1_000_000


@dataclasses.dataclass(frozen=True)
class EncodedDocuments:
  """Token ids of some documents, end to end.

  Attributes:
    tokens: uint16 [T], all tokens.
    sentence_lengths: uint32 [S], tokens of each sentence.
    document_sentences: uint32 [N], sentences of each document.
    hashes: uint64 [N], of each document's text.
    num_bytes: size of the text, UTF-8.
  """

  tokens: np.ndarray
  sentence_lengths: np.ndarray
  document_sentences: np.ndarray
  hashes: np.ndarray
  num_bytes: int


class _WordMemo(dict):
  """Remembers each word's ids as bytes: {word: uint16 ids}.

  A plain word with punctuation is put together from its parts, which are few,
  and a part needs no more of the tokenizer than its last stage: all of it is a
  hundred times slower than a look-up, the last stage thirty times.
  """

  def __init__(self, vocab, lowercase):
    super().__init__()
    self._tokenizer = create_tokenizer(vocab, lowercase)
    self._model = self._tokenizer.model
    self._lowercase = lowercase

  def __missing__(self, word):
    parts = split_plain(word)
    if parts is None:
      ids = self._tokenizer.encode(word, add_special_tokens=False).ids
      encoded = array.array("H", ids).tobytes()
    elif len(parts) == 1:
      plain = word.lower() if self._lowercase else word
      ids = [token.id for token in self._model.tokenize(plain)]
      encoded = array.array("H", ids).tobytes()
    else:
      encoded = b"".join(map(self.__getitem__, parts))
    if len(self) >= _MAX_REMEMBERED_WORDS:
      self.clear()
    self[word] = encoded
    return encoded


class Encoder:
  """Splits documents into sentences and sentences into token ids.

  The ids of a sentence are those of its space-separated words, one after the
  other: WordPiece never looks past a space. So each distinct word is encoded
  once.

  Attributes:
    vocab: list of tokens, fewer than 65,536.
    lowercase: whether the vocabulary is lower-cased.
    language: ISO 639 code for the sentence splitter.
    one_sentence_per_line: if True, lines are sentences already.
  """

  def __init__(self, vocab, lowercase, language, one_sentence_per_line):
    self._ids = _WordMemo(vocab, lowercase)
    self._split = (
      (lambda line: [line])
      if one_sentence_per_line
      else functools.partial(sentencex.segment, language)
    )

  def encode(self, documents):
    """Encodes documents.

    Args:
      documents: list of str, one paragraph (or sentence) a line.

    Returns:
      `EncodedDocuments`; sentences without any token are dropped.
    """
    sentences, document_sentences = [], []
    for document in documents:
      before = len(sentences)
      for line in document.split("\n"):
        for sentence in self._split(line):
          ids = b"".join(map(self._ids.__getitem__, sentence.split(" ")))
          if ids:
            sentences.append(ids)
      document_sentences.append(len(sentences) - before)
    texts = [document.encode() for document in documents]
    return EncodedDocuments(
      tokens=np.frombuffer(b"".join(sentences), np.uint16),
      sentence_lengths=np.array([len(s) // 2 for s in sentences], np.uint32),
      document_sentences=np.array(document_sentences, np.uint32),
      hashes=np.array([hash_text(text) for text in texts], np.uint64),
      num_bytes=sum(map(len, texts)),
    )


def encode(vocab_path, lowercase, language, one_per_line, documents):
  """Encodes documents by an encoder that this process keeps.

  Args:
    vocab_path: `pathlib.Path` of a vocab.txt.
    lowercase, language, one_per_line: see `Encoder`.
    documents: list of str, one paragraph (or sentence) a line.

  Returns:
    `EncodedDocuments`.
  """
  encoder = _create_encoder(vocab_path, lowercase, language, one_per_line)
  return encoder.encode(documents)


@functools.lru_cache(maxsize=1)
def _create_encoder(vocab_path, lowercase, language, one_per_line):
  vocab = load_vocabulary(vocab_path)
  return Encoder(vocab, lowercase, language, one_per_line)


def hash_text(text):
  """Returns 64 bits that name a document: int, from its UTF-8 bytes."""
  return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
