"""Input and output of the text commands: files with a JSON object a line."""

import json

import tqdm

from bert_jax.data.rows import iterate_rows
from bert_jax.errors import UserError
from bert_jax.storage import paths


def rows_of(texts, input_path, text_key="text"):
  """Returns the rows that a command line gives, in one of two ways.

  Args:
    texts: list of (text, second text or None) of the command line.
    input_path: file, see `data.rows.iterate_rows`, or None.
    text_key: key of the text in JSON records.

  Returns:
    iterable of (text, second text or None).

  Raises:
    UserError: neither was given, or both.
  """
  if bool(texts) == bool(input_path):
    raise UserError("expected either --text or --input, a file of texts")
  return iterate_rows(input_path, text_key) if input_path else iter(texts)


def save(output, records):
  """Writes records as they come; the file appears when it is whole.

  Args:
    output: path.
    records: iterable of dicts.

  Returns:
    number of records.

  Raises:
    UserError: there are none.
  """
  number = 0
  with paths.replaced_file(output) as unfinished:
    with unfinished.open("w") as f:
      for record in tqdm.tqdm(records, unit="row", disable=None):
        f.write(json.dumps(record, ensure_ascii=False) + "\n")
        number += 1
    if not number:
      raise UserError("--input has no rows; expected at least one")
  return number
