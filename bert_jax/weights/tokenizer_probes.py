"""Compares two tokenizers on texts that tell their rules apart."""

import unicodedata

from bert_jax.data.json_text import shorten
from bert_jax.errors import UserError

_TEXTS = (
  "The River's stones, moved: 3.14 (or so)! user@example.com #tag a_b $5",
  "Ünïcödé Café naïve İstanbul ß ﬁ ① ½ e\u0301 a\u0308",
  "한국어 हिन्दी ภาษาไทย 中文字符 日本語のテキスト",
  "tab\tnew\nline\r\x00\ufffd zero\u200bwidth\u00a0nbsp \U0001f600",
)
# Words of the vocabulary that are looked at, spread over it.
_NUM_WORDS = 300


def check_same_ids(path, theirs, ours, vocab):
  """Checks that a folder's tokenizer gives the ids that ours does.

  Args:
    path: its tokenizer.json, for messages.
    theirs: `tokenizers.Tokenizer`.
    ours: `tokenizers.Tokenizer`.
    vocab: list of str, the tokens in the order of their ids.

  Raises:
    UserError: a text gets other ids; shows the text and both.
  """
  texts = _create_texts(vocab)
  try:
    found = theirs.encode_batch(texts, add_special_tokens=False)
    pair = theirs.encode("a", "b")
  except Exception as e:  # the library raises nothing more precise
    raise UserError(f"{path} can't be used: {shorten(str(e))}") from None
  expected = ours.encode_batch(texts, add_special_tokens=False)
  for text, mine, other in zip(texts, expected, found, strict=True):
    if mine.ids != other.ids:
      raise UserError(
        f"{path} cuts {shorten(text)} into "
        f"{shorten(' '.join(other.tokens))}; expected "
        f"{shorten(' '.join(mine.tokens))}, as BERT's tokenizer does (another "
        "normalizer or pre_tokenizer)"
      )
  expected = ours.encode("a", "b")
  plain = ours.encode("a", "b", add_special_tokens=False)
  if pair.ids not in (plain.ids, expected.ids):
    raise UserError(
      f"{path} writes a pair as {shorten(' '.join(pair.tokens))}; expected "
      f"{' '.join(expected.tokens)!r}"
    )


def _create_texts(vocab):
  """Returns texts with words of the vocabulary, written in several ways."""
  words = [t for t in vocab if t.isalnum()]
  ends = [t[2:] for t in vocab if t.startswith("##") and t[2:].isalnum()]
  words = words[:: max(1, len(words) // _NUM_WORDS)]
  ends = ends[:: max(1, len(ends) // _NUM_WORDS)]
  texts = list(_TEXTS)
  for i, word in enumerate(words):
    accented = word.replace("e", "\u00e9").replace("a", "\u00e4")
    texts += [
      word,
      word.upper(),
      word.capitalize(),
      accented,
      unicodedata.normalize("NFD", accented),
      f"{word}\u4e2d{word}",
      f"{word}\x00, {word}-{word}'s.",
    ]
    if ends:
      texts.append(word + ends[i % len(ends)])
  return texts
