"""Reads the texts that a model is run on: a text, or pair of texts, a line."""

import gzip
import zlib

from bert_jax.data.json_text import parse_object
from bert_jax.data.regular_file import is_regular
from bert_jax.errors import UserError
from bert_jax.storage import paths

SUFFIXES = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz")
PAIR_KEY = "text_pair"


def iterate_rows(path, text_key):
  """Yields the rows of a file, one at a time.

  Args:
    path: str or path ending in one of `SUFFIXES`.
    text_key: key of the text in JSON records; a second text may lie under
      "text_pair".

  Yields:
    (text, second text or None), both str; an empty line of a .txt file is an
    empty text.

  Raises:
    UserError: the file or one of its rows can't be read; names the row.
  """
  try:
    str(path).encode()
  except UnicodeEncodeError:
    raise UserError(
      f"the name {str(path)!a} is not UTF-8; expected one that is"
    ) from None
  path = paths.as_path(path)
  if path.exists() and not is_regular(path):
    raise UserError(f"{path} is a folder or a device; expected a file")
  if not path.name.endswith(SUFFIXES):
    raise UserError(f"{path} should end in {', '.join(SUFFIXES)}")
  is_json = path.name.removesuffix(".gz").endswith(".jsonl")
  for number, line in enumerate(_lines(path), start=1):
    where = f"{path} row {number}"
    try:
      text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except ValueError as e:
      raise UserError(f"{where} can't be read: {e}") from None
    yield _texts_of(text, text_key, where) if is_json else (text, None)


def _lines(path):
  """Yields the lines of a file, as bytes without their ends."""
  try:
    with path.open("rb") as file:
      lines = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
      for line in lines:
        yield line.rstrip(b"\r\n")
  except (OSError, EOFError, ValueError, zlib.error) as e:
    raise UserError(f"{path} can't be read: {e}") from None


def _texts_of(line, text_key, where):
  """Returns the texts of a JSON record; raises UserError without any."""
  record = parse_object(line, where)
  text, pair = record.get(text_key), record.get(PAIR_KEY)
  if not isinstance(text, str):
    raise UserError(
      f"{where} can't be read: no text under {text_key!r} (it has: "
      f"{', '.join(map(repr, record)) or 'nothing'}); set --text_key"
    )
  if not isinstance(pair, str | None):
    raise UserError(
      f"{where} can't be read: {PAIR_KEY!r} is a {type(pair).__name__}; "
      "expected text"
    )
  return text, pair
