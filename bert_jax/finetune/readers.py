"""Reads rows of labelled text: tables, JSON lines, CoNLL columns, tfds.

Every reader gives `Record`s, whose values are looked up by a column's name or
by its number, counted from 1, or from -1 at the end. SQuAD's JSON has a reader
of its own in `question_answering.py`.
"""

import csv
import dataclasses
import io

import numpy as np

from bert_jax.data.json_text import parse_object
from bert_jax.data.regular_file import is_regular
from bert_jax.errors import UserError
from bert_jax.finetune import values as values_lib
from bert_jax.storage import paths

# What an ending means, unless `data.format` says something else.
_FORMATS = {
  ".tsv": "tsv",
  ".csv": "csv",
  ".jsonl": "jsonl",
  ".json": "jsonl",
  ".conll": "conll",
  ".bio": "conll",
  ".iob": "conll",
}
FORMATS = ("tsv", "tsv_quoted", "csv", "jsonl", "conll")


@dataclasses.dataclass(frozen=True)
class Record:
  """One row of a source.

  Attributes:
    where: source and line, for messages.
    values: dict of column name or number, str, to the value: str, number, list
      or None.
  """

  where: str
  values: dict

  def text(self, column):
    """Returns the text of a column; raises UserError if it is no text."""
    return values_lib.as_text(self.get(column), self.where_is(column))

  def texts(self, column):
    """Returns a column's list of words or tags, a tuple of str."""
    return values_lib.as_texts(self.get(column), self.where_is(column))

  def where_is(self, column):
    """Returns source, line and column, for messages."""
    return f"{self.where}, column {column!r},"

  def get(self, column):
    """Returns the value of a column.

    Raises:
      UserError: the row has no such column.
    """
    if column not in self.values:
      raise UserError(
        f"{self.where} has no column {column!r}; it has: "
        f"{', '.join(self.values) or 'none'} (see --config.data)"
      )
    return self.values[column]


def read_records(
  source, file_format="", has_header=True, default="tsv", columns=()
):
  """Reads every row of a source.

  Args:
    source: path, or "tfds:NAME[/CONFIG][:SPLIT]".
    file_format: one of `FORMATS`; "" goes by the ending.
    has_header: whether the first line of a table names the columns.
    default: the format of a file whose ending says nothing.
    columns: those that will be asked for. If all of them are numbers, a first
      line that is taken for the columns' names is told.

  Returns:
    list of `Record`, at least one.

  Raises:
    UserError: the source can't be read, or a row is not as the others.
  """
  if source.startswith("tfds:"):
    records = _tfds_records(source)
  else:
    path = paths.as_path(source)
    text = read_text(path)
    file_format = file_format or _FORMATS.get(path.suffix.lower(), default)
    if file_format == "jsonl":
      records = _json_records(path, text)
    elif file_format == "conll":
      records = _conll_records(path, text)
    else:
      rows = _table_rows(path, text, file_format)
      records = _table_records(path, rows, has_header, columns)
  if not records:
    raise UserError(f"{source} has no rows; expected at least one")
  return records


def read_lines(source):
  """Reads a file with an unlabelled example on each line.

  Args:
    source: path.

  Returns:
    list of (source and line, for messages; the line), at least one.

  Raises:
    UserError: the file can't be read or is empty.
  """
  lines = split_lines(read_text(paths.as_path(source)))
  if not lines:
    raise UserError(f"{source} has no lines; expected at least one")
  return [(f"{source} line {i}", line) for i, line in enumerate(lines, 1)]


def read_text(path):
  """Reads a UTF-8 file, with or without a byte-order mark.

  Raises:
    UserError: it is not there or not UTF-8; names the line.
  """
  try:
    str(path).encode()
    if path.exists() and not is_regular(path):
      raise UserError(f"{path} is a folder or a device; expected a file")
    data = path.read_bytes()
  except UnicodeEncodeError:
    raise UserError(
      f"the name {str(path)!a} is not UTF-8; expected one that is"
    ) from None
  except (OSError, ValueError) as e:
    raise UserError(
      f"{path} can't be read: {getattr(e, 'strerror', None) or e}; expected a "
      "file (see --config.data)"
    ) from None
  try:
    return data.decode("utf-8-sig")
  except UnicodeDecodeError as e:
    line = data[: e.start].count(b"\n") + 1
    raise UserError(
      f"{path} line {line} is not UTF-8 (byte 0x{data[e.start]:02x}); expected "
      "UTF-8 text"
    ) from None


def split_lines(text):
  """Cuts at line ends alone: str.splitlines knows others, within sentences."""
  lines = text.replace("\r\n", "\n").split("\n")
  return lines[:-1] if lines[-1] == "" else lines


def _line_rows(text):
  """Yields (line number, fields): columns parted by tabs, nothing quoted."""
  for number, line in enumerate(split_lines(text), 1):
    yield number, line.split("\t")


def _table_rows(path, text, file_format):
  """Yields (line number, fields) of a table."""
  if file_format == "tsv":
    yield from _line_rows(text)
    return
  delimiter = "," if file_format == "csv" else "\t"
  reader = csv.reader(
    io.StringIO(text, newline=""), delimiter=delimiter, strict=True
  )
  first = 1
  try:
    for fields in reader:
      yield first, fields or [""]
      first = reader.line_num + 1
  except csv.Error as e:
    raise UserError(
      f"{path} line {first} is no row of a table: {e} (if its quotes are "
      "plain characters, set --config.data.format=tsv)"
    ) from None


def _table_records(path, rows, has_header, columns):
  records, header, num_columns = [], None, None
  for line, fields in rows:
    num_columns = num_columns or len(fields)
    if has_header and header is None:
      header = fields
      for column in columns:
        if header.count(column) > 1:
          raise UserError(
            f"{path} line {line} names the column {column!r} "
            f"{header.count(column)} times; expected once"
          )
      _tell_header(path, header, columns)
      continue
    # Only in a table of one column is an empty line a row.
    if fields == [""] and num_columns > 1:
      continue
    if header and len(fields) != len(header):
      raise UserError(
        f"{path} line {line} has {len(fields)} columns; expected "
        f"{len(header)}, as in its first line"
      )
    values = _numbered(fields)
    if header:
      values = dict(zip(header, fields, strict=True)) | {
        number: field
        for number, field in values.items()
        if number not in header
      }
    records.append(Record(f"{path} line {line}", values))
  return records


def _tell_header(path, header, columns):
  """Prints the first line where it is taken for names that no setting uses."""
  numbers = columns and all(c.lstrip("-").isdecimal() for c in columns)
  if numbers and not set(columns) <= set(header):
    print(
      f"data: the first line of {path} is taken for the names of its columns, "
      f"{', '.join(header)[:60]!r} (if it is a row: "
      "--config.data.header=False)"
    )


def _numbered(fields):
  """Returns {"1": first, ..., "-1": last}."""
  forward = {str(i): field for i, field in enumerate(fields, 1)}
  return forward | {str(i - len(fields)): f for i, f in enumerate(fields)}


def _json_records(path, text):
  records = []
  for number, line in enumerate(split_lines(text), 1):
    if not line.strip():
      continue
    where = f"{path} line {number}"
    records.append(Record(where, parse_object(line, where)))
  return records


def _conll_records(path, text):
  """Reads sentences: a word with its columns a line, an empty line between.

  A line that starts with "#" and has not as many columns as the words have is
  a comment, and so is "-DOCSTART-".
  """
  sentences, sentence, first, num_columns = [], [], 1, None
  lines = split_lines(text)
  for number, line in enumerate([*lines, ""], 1):
    if line.strip() and not line.startswith("-DOCSTART-"):
      fields = line.split("\t") if "\t" in line else line.split(" ")
      fields = [field for field in fields if field]
      if line.startswith("#") and len(fields) != (num_columns or 2):
        continue
      num_columns = num_columns or len(fields)
      if len(fields) != num_columns:
        raise UserError(
          f"{path} line {number} has {len(fields)} columns; expected "
          f"{num_columns}, as in the lines before"
        )
      first = first if sentence else number
      sentence.append(fields)
    elif sentence:
      columns = [list(column) for column in zip(*sentence, strict=True)]
      sentences.append(Record(f"{path} line {first}", _numbered(columns)))
      sentence = []
  return sentences


def _tfds_records(source):
  """Reads a data set of TensorFlow Datasets; class numbers become names."""
  import tensorflow_datasets as tfds

  from bert_jax.data.sources.tfds import open_tfds

  name, _, split = source.removeprefix("tfds:").partition(":")
  split = split or "train"
  builder = open_tfds("data", source, name)
  try:
    builder.info.splits[split]
  except (KeyError, ValueError):
    raise UserError(
      f"data {source!r} has no split {split!r}; it has: "
      f"{', '.join(builder.info.splits)}"
    ) from None
  features = builder.info.features
  if builder.info.file_format == tfds.core.file_adapters.FileFormat.TFRECORD:
    rows = tfds.as_numpy(builder.as_dataset(split=split))
  else:
    rows = builder.as_data_source(split=split)
  return [
    Record(
      f"{source} row {i}",
      {key: _plain(value, features[key]) for key, value in row.items()},
    )
    for i, row in enumerate(rows)
  ]


def _plain(value, feature):
  """Returns a value of tfds as JSON would hold it."""
  import tensorflow_datasets as tfds

  if isinstance(value, dict):
    return {key: _plain(v, feature[key]) for key, v in value.items()}
  inner = getattr(feature, "feature", feature)
  if np.ndim(value):
    return [_plain(v, inner) for v in value]
  if isinstance(value, bytes):
    return value.decode("utf-8", "replace")
  if isinstance(inner, tfds.features.ClassLabel):
    # -1 is how GLUE says that a label is kept secret.
    return None if value < 0 else inner.int2str(int(value))
  return np.asarray(value).item()
