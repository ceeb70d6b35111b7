"""BERT's tokenizer: normalisation, words, WordPiece."""

import dataclasses
import re

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# WordPiece turns longer words into [UNK], as in transformers. The original
# code's limit was 200.
MAX_WORD_CHARS = 100
# ASCII without space and control characters, and without what may begin a
# special token.
_PLAIN = re.compile(r"[!-Z\\-~]*")
_PLAIN_PARTS = re.compile(r"[0-9A-Za-z]+|[!-~]")


@dataclasses.dataclass(frozen=True)
class WordRules:
  """How text becomes BERT's words.

  Attributes:
    lowercase: whether to lower-case.
    strip_accents: whether to remove combining marks; None removes them from
      lower-cased text only.
    split_long_words: whether words over `MAX_WORD_CHARS` characters are cut
      into shorter ones; otherwise each becomes one [UNK].
  """

  lowercase: bool
  strip_accents: bool | None = None
  split_long_words: bool = False


def create_tokenizer(vocab, lowercase, strip_accents=None):
  """Builds the tokenizer of exported models.

  Args:
    vocab: sequence of str, the tokens in the order of their ids; holds
      `SPECIAL_TOKENS`.
    lowercase: whether to lower-case.
    strip_accents: whether to remove combining marks; None removes them from
      lower-cased text only, as transformers' BertTokenizer does.

  Returns:
    `tokenizers.Tokenizer`; encoding adds [CLS] and [SEP] unless told not to.
  """
  ids = {token: i for i, token in enumerate(vocab)}
  tokenizer = tokenizers.Tokenizer(
    models.WordPiece(
      ids, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD_CHARS
    )
  )
  tokenizer.normalizer = normalizers.BertNormalizer(
    lowercase=lowercase, strip_accents=strip_accents
  )
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]",
    pair="[CLS] $A [SEP] $B:1 [SEP]:1",
    special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
  )
  tokenizer.decoder = decoders.WordPiece(prefix="##")
  tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
  return tokenizer


def create_text_tokenizer(vocab, rules):
  """Builds the tokenizer of corpus text, where "[SEP]" is plain characters.

  Text that spells a special token must not end a sentence or mask a word, so
  it is cut into words like any other text, as the original code does.

  Args:
    vocab: as in `create_tokenizer`.
    rules: `WordRules`; `split_words` cuts long words.

  Returns:
    `tokenizers.Tokenizer`.
  """
  tokenizer = create_tokenizer(vocab, rules.lowercase, rules.strip_accents)
  # The library's name for: special tokens spelled in text are plain text.
  tokenizer.encode_special_tokens = True
  return tokenizer


def split_words(tokenizer, rules, text):
  """Returns BERT's words of a text, a list of str.

  Args:
    tokenizer: of `create_text_tokenizer`.
    rules: `WordRules`.
    text: str.
  """
  normalized = tokenizer.normalizer.normalize_str(text)
  words = [w for w, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized)]
  if not rules.split_long_words:
    return words
  size = MAX_WORD_CHARS
  return [w[i : i + size] for w in words for i in range(0, len(w), size)]


def split_plain(word):
  """Cuts a word at its punctuation, where that takes no tokenizer.

  Args:
    word: str without spaces.

  Returns:
    list of str, as BERT's pre-tokenizer cuts, case kept; None for a word that
    only the tokenizer knows how to cut.
  """
  return _PLAIN_PARTS.findall(word) if _PLAIN.fullmatch(word) else None


def token_dtype(vocab_size):
  """Returns the name of the smallest dtype that holds every token id."""
  return "uint16" if vocab_size <= 2**16 else "uint32"
