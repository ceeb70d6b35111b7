"""Reads the vocabulary of a foreign folder: which row each token has."""

from bert_jax.data.json_text import shorten
from bert_jax.data.tokenization import SPECIAL_TOKENS
from bert_jax.errors import UserError
from bert_jax.weights.folder_files import get, read_text

# A vocabulary that names fewer of the table's rows was cut.
_MAX_UNNAMED_ROWS = 1_024


def load_listed_ids(path, notes):
  """Returns {token: id} of a vocab.txt; adds what is odd in it to `notes`."""
  lines = read_text(path).removesuffix("\n").split("\n")
  ids = {line.rstrip("\r"): i for i, line in enumerate(lines)}
  if len(ids) < len(lines):
    first = next(
      i for i, line in enumerate(lines) if ids[line.rstrip("\r")] != i
    )
    notes.append(
      f"{path} has {len(lines) - len(ids)} tokens twice, such as "
      f"{lines[first]!r} in line {first + 1}; the last line of each counts"
    )
  return ids


def load_tokenizer_ids(saved, path):
  """Returns {token: id} of a tokenizer.json with BERT's WordPiece.

  Args:
    saved: dict, the parsed file.
    path: the file.

  Raises:
    UserError: its model is another one.
  """
  model = get(saved, "model", dict, {}, path)
  for key, plain in (
    ("type", "WordPiece"),
    ("continuing_subword_prefix", "##"),
    ("unk_token", "[UNK]"),
    ("max_input_chars_per_word", 100),
  ):
    if model.get(key, plain) != plain:
      raise UserError(
        f"the {key} of {path} is {shorten(model[key])}; expected {plain!r}"
      )
  return get(model, "vocab", dict, {}, path)


def name_rows(ids, vocab_size, source):
  """Names every row of an embedding table.

  More rows than tokens are usual: sizes are rounded up.

  Args:
    ids: dict of token to row.
    vocab_size: number of rows.
    source: where the vocabulary is from, for messages.

  Returns:
    list of `vocab_size` str; a row without a token has a name that no text
    contains, since the tokenizer cuts at brackets.

  Raises:
    UserError: a token has no row or shares one, or a special token is missing.
  """
  missing = [token for token in SPECIAL_TOKENS if token not in ids]
  if missing:
    raise UserError(
      f"the vocabulary of {source} lacks {', '.join(missing)}; expected a "
      "WordPiece vocabulary"
    )
  vocab = [None] * vocab_size
  for token, i in ids.items():
    if type(i) is not int or i < 0:
      raise UserError(
        f"the vocabulary of {source} has the id {shorten(i)} for {token!r}; "
        "expected a whole number"
      )
    if i >= vocab_size:
      largest = max(j for j in ids.values() if type(j) is int)
      raise UserError(
        f"the vocabulary of {source} has {largest + 1} tokens; expected at "
        f"most {vocab_size}, the rows of the embedding table"
      )
    if vocab[i] is not None:
      raise UserError(
        f"the vocabulary of {source} has the id {i} for {vocab[i]!r} and "
        f"{token!r}; expected one token"
      )
    vocab[i] = token
  return [
    f"[row {i}]" if token is None else token for i, token in enumerate(vocab)
  ]


def row_notes(ids, vocab_size, folder):
  """Returns lines on rows of the table that no token names.

  Raises:
    UserError: they are so many that the vocabulary must have been cut.
  """
  missing = vocab_size - len(ids)
  if not missing:
    return []
  if missing > max(_MAX_UNNAMED_ROWS, vocab_size // 10):
    raise UserError(
      f"the vocabulary of {folder} has {len(ids)} tokens; expected about "
      f"{vocab_size}, the rows of the embedding table (was it cut?)"
    )
  return [f"{missing} of {vocab_size} rows of the embeddings have no token"]
