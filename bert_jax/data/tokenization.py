"""BERT's tokenizer: normalisation, words, WordPiece."""

import re

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# ASCII without space and control characters, and without what may begin a
# special token.
_PLAIN = re.compile(r"[!-Z\\-~]*")
_PLAIN_PARTS = re.compile(r"[0-9A-Za-z]+|[!-~]")


def create_tokenizer(vocab, lowercase, strip_accents=None):
  """Builds the tokenizer that prepares the corpus and that is exported.

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
  # 100 characters, as in transformers: longer words are [UNK]. The original
  # code's limit was 200.
  tokenizer = tokenizers.Tokenizer(
    models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100)
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
