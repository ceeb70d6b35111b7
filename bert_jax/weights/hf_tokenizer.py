"""Reads how a foreign folder turns text to ids, and follows it or refuses.

What is followed: the vocabulary, lower-casing, accents, tokens added to the
vocabulary, the longest length. Anything else must be as in BERT's tokenizer,
and where the folder has a tokenizer.json, its ids and ours are compared on
sample texts (`tokenizer_probes.py`).
"""

import dataclasses

import tokenizers

from bert_jax.data.json_text import shorten
from bert_jax.data.tokenization import SPECIAL_TOKENS, create_tokenizer
from bert_jax.errors import UserError
from bert_jax.weights import hf
from bert_jax.weights.folder_files import get, load_json_if_any, read_text
from bert_jax.weights.hf_vocabulary import (
  load_listed_ids,
  load_tokenizer_ids,
  name_rows,
  row_notes,
)
from bert_jax.weights.tokenizer_probes import check_same_ids

_SETTINGS_FILE = "tokenizer_config.json"
_TOKENIZER_FILE = "tokenizer.json"
_VOCAB_FILE = "vocab.txt"
# transformers' names of BERT's tokenizer. The second group asks tokenizer.json
# alone; the first has its settings from tokenizer_config.json.
_BERT_CLASSES = (
  *("BertTokenizer", "BertTokenizerFast"),
  *("DistilBertTokenizer", "DistilBertTokenizerFast"),
  *("ElectraTokenizer", "ElectraTokenizerFast"),
)
_ANY_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
_SPECIAL_KEYS = {
  "pad_token": "[PAD]",
  "unk_token": "[UNK]",
  "cls_token": "[CLS]",
  "sep_token": "[SEP]",
  "mask_token": "[MASK]",
}
# What transformers writes where there is no limit is far above this.
_NO_LIMIT = 10**9


@dataclasses.dataclass(frozen=True)
class Tokenization:
  """What turns text to ids in a folder.

  Attributes:
    vocab: list of str, one for each row of the embeddings; None if the folder
      has no vocabulary.
    lowercase: whether it lower-cases, or None where nothing is said.
    strip_accents: whether it strips accents; None does so in lower-cased text
      only.
    added_tokens: tuple of `tokenizers.AddedToken`, tokens that are found in
      text as they stand.
    max_length: longest sequence in tokens, or None where nothing is said.
    notes: lines for the user.
  """

  vocab: list[str] | None
  lowercase: bool | None
  strip_accents: bool | None
  added_tokens: tuple
  max_length: int | None
  notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Files:
  """The parsed files of a tokenizer; empty dicts for those that are missing."""

  folder: object
  settings: dict
  tokenizer: dict
  added: dict
  special: dict
  config: dict

  @property
  def settings_path(self):
    return self.folder / _SETTINGS_FILE

  @property
  def tokenizer_path(self):
    return self.folder / _TOKENIZER_FILE


def load_tokenization(folder, vocab_size):
  """Reads the vocabulary and how text is to be written for it.

  Args:
    folder: `epath.Path`.
    vocab_size: rows of the embedding table.

  Returns:
    `Tokenization`.

  Raises:
    UserError: a file can't be read, the tokenizer is not BERT's or does
      something ours can't follow, or its tokens do not fit into the table.
  """
  files = _Files(
    folder,
    settings=load_json_if_any(folder / _SETTINGS_FILE),
    tokenizer=load_json_if_any(folder / _TOKENIZER_FILE),
    added=load_json_if_any(folder / "added_tokens.json"),
    special=load_json_if_any(folder / "special_tokens_map.json"),
    config=load_json_if_any(folder / hf.CONFIG_FILE),
  )
  asks_tokenizer = _check_class(files)
  _check_settings(files)
  lowercase, strip_accents, notes = _casing(files, asks_tokenizer)
  ids = _load_ids(files, notes)
  if ids is None:
    return Tokenization(
      None, lowercase, strip_accents, (), _max_length(files), ()
    )
  added = _added_tokens(files, ids, notes)
  for number, token in added:
    if ids.setdefault(token.content, number) != number:
      raise UserError(
        f"{folder} has two ids for {token.content!r}, {ids[token.content]} and "
        f"{number}; expected one"
      )
  vocab = name_rows(ids, vocab_size, folder)
  added = tuple(t for _, t in added if t.content not in SPECIAL_TOKENS)
  if files.tokenizer:
    ours = create_tokenizer(vocab, lowercase is not False, strip_accents)
    ours.add_tokens(list(added))
    theirs = _their_tokenizer(files, asks_tokenizer, lowercase, strip_accents)
    check_same_ids(files.tokenizer_path, theirs, ours, vocab)
  notes += row_notes(ids, vocab_size, folder)
  return Tokenization(
    vocab, lowercase, strip_accents, added, _max_length(files), tuple(notes)
  )


def _check_class(files):
  """Returns whether tokenizer.json alone decides, by the tokenizer's class.

  Raises:
    UserError: the class is not BERT's.
  """
  known = (*_BERT_CLASSES, *_ANY_CLASSES)
  found = None
  for values, path in (
    (files.config, files.folder / hf.CONFIG_FILE),
    (files.settings, files.settings_path),
  ):
    name = get(values, "tokenizer_class", str, None, path)
    if name is not None and name not in known:
      raise UserError(
        f"tokenizer_class is {name!r} in {path}; expected BertTokenizer (its "
        "words are cut by other rules)"
      )
    own_code = get(values, "auto_map", dict, {}, path)
    if own_code.get("AutoTokenizer"):
      raise UserError(
        f"{path} brings a tokenizer of its own code (auto_map); expected "
        "BertTokenizer"
      )
    found = name or found
  return found in _ANY_CLASSES and bool(files.tokenizer)


def _check_settings(files):
  """Raises UserError for settings of BertTokenizer that ours does not have."""
  path = files.settings_path
  for key, plain in (
    ("do_basic_tokenize", True),
    ("tokenize_chinese_chars", True),
  ):
    value = get(files.settings, key, bool, plain, path)
    if value != plain:
      raise UserError(f"{key} is {value} in {path}; expected {plain}")
  never_split = get(files.settings, "never_split", list, [], path)
  if any(token not in SPECIAL_TOKENS for token in never_split):
    raise UserError(
      f"never_split is {shorten(never_split)} in {path}; expected none"
    )
  for values, path in (
    (files.settings, files.settings_path),
    (files.special, files.folder / "special_tokens_map.json"),
  ):
    for key, plain in _SPECIAL_KEYS.items():
      value = get(values, key, (str, dict), plain, path)
      value = value.get("content") if isinstance(value, dict) else value
      if value != plain:
        raise UserError(
          f"{key} is {shorten(value)} in {path}; expected {plain!r}"
        )


def _casing(files, asks_tokenizer):
  """Returns (lowercase, strip_accents, notes); None is where nothing is said.

  tokenizer_config.json counts, as in transformers; where it says nothing,
  tokenizer.json does.
  """
  path, settings_path = files.tokenizer_path, files.settings_path
  normalizer = get(files.tokenizer, "normalizer", dict, {}, path)
  lowercase = get(normalizer, "lowercase", bool, None, path)
  accents = get(normalizer, "strip_accents", bool, None, path)
  given = get(files.settings, "do_lower_case", bool, None, settings_path)
  notes = []
  if given is not None and not (asks_tokenizer and lowercase is not None):
    lowercase = given
  elif lowercase is False and not asks_tokenizer:
    notes.append(
      f"taken to be cased, as {path} says; transformers 5 lower-cases unless "
      f"{_SETTINGS_FILE} says do_lower_case false too"
    )
  if "strip_accents" in files.settings and not (
    asks_tokenizer and "strip_accents" in normalizer
  ):
    accents = get(files.settings, "strip_accents", bool, None, settings_path)
  # How transformers spells the default.
  accents = None if accents == (lowercase is not False) else accents
  return lowercase, accents, notes


def _load_ids(files, notes):
  """Returns {token: id}, or None without any; adds what is odd to `notes`."""
  folder = files.folder
  listed = (folder / _VOCAB_FILE).exists()
  if files.tokenizer:
    ids = load_tokenizer_ids(files.tokenizer, files.tokenizer_path)
    if listed and load_listed_ids(folder / _VOCAB_FILE, []) != ids:
      notes.append(
        f"{_VOCAB_FILE} has other tokens than {_TOKENIZER_FILE}, which counts"
      )
    return ids
  if not listed:
    return None
  ids = load_listed_ids(folder / _VOCAB_FILE, notes)
  if any(t.startswith("\u2581") for t in ids) and not any(
    t.startswith("##") for t in ids
  ):
    raise UserError(
      f"{folder / _VOCAB_FILE} lists SentencePiece's pieces (\u2581); expected "
      "WordPiece's (##)"
    )
  return ids


def _added_tokens(files, ids, notes):
  """Returns a list of (id, `AddedToken`), BERT's special tokens included."""
  found = {}
  for content, number in files.added.items():
    found[content] = (number, {})
  path = files.tokenizer_path
  for token in get(files.tokenizer, "added_tokens", list, [], path):
    _add(found, token, token.get("id") if isinstance(token, dict) else 0, path)
  path = files.settings_path
  decoder = get(files.settings, "added_tokens_decoder", dict, {}, path)
  for number, token in decoder.items():
    is_whole = number.isdecimal() and len(number) < 10
    _add(found, token, int(number) if is_whole else number, path)
  _add_special_tokens(files, ids, found, notes)
  return [
    (number, _create_added_token(content, token))
    for content, (number, token) in found.items()
  ]


def _add_special_tokens(files, ids, found, notes):
  """Adds tokens that are special though the vocabulary lists them as words."""
  for values, path in (
    (files.settings, files.settings_path),
    (files.special, files.folder / "special_tokens_map.json"),
  ):
    tokens = get(values, "additional_special_tokens", list, [], path)
    for token in tokens:
      token = {"content": token} if isinstance(token, str) else token
      known = isinstance(token, dict) and str(token.get("content"))
      if known in found or known in SPECIAL_TOKENS:
        continue
      if known not in ids:
        notes.append(f"{path} has a special token {known!r} without an id")
        continue
      _add(found, token | {"special": True}, ids[known], path)


def _add(found, token, number, path):
  if not isinstance(token, dict) or not isinstance(token.get("content"), str):
    raise UserError(
      f"{path} has an added token {shorten(token)}; expected an object with "
      "content"
    )
  found[token["content"]] = (number, token)


def _create_added_token(content, token):
  special = token.get("special") is True
  return tokenizers.AddedToken(
    content,
    single_word=token.get("single_word") is True,
    lstrip=token.get("lstrip") is True,
    rstrip=token.get("rstrip") is True,
    normalized=token.get("normalized", not special) is True,
    special=special,
  )


def _their_tokenizer(files, asks_tokenizer, lowercase, strip_accents):
  """Returns the tokenizer of tokenizer.json as transformers would use it."""
  path = files.tokenizer_path
  try:
    theirs = tokenizers.Tokenizer.from_str(read_text(path))
  except Exception as e:  # the library raises nothing more precise
    reason = " ".join(str(e).split())[:200]
    raise UserError(f"{path} can't be read: {reason}") from None
  theirs.no_truncation()
  theirs.no_padding()
  normalizer = files.tokenizer.get("normalizer") or {}
  if normalizer.get("type") == "BertNormalizer" and not asks_tokenizer:
    theirs.normalizer.lowercase = lowercase is not False
    theirs.normalizer.strip_accents = strip_accents
  return theirs


def _max_length(files):
  """Returns the longest sequence that the folder allows, or None."""
  path = files.settings_path
  value = get(files.settings, "model_max_length", (int, float), _NO_LIMIT, path)
  if not value > 2:  # [CLS] and [SEP]
    raise UserError(
      f"model_max_length is {shorten(value)} in {path}; expected 3 or more"
    )
  return int(value) if value < _NO_LIMIT else None
