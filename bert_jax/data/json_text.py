"""JSON that others wrote: whatever is wrong with it is told in one line."""

import json
import re
import reprlib

from bert_jax.errors import UserError

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 60
# What may spell half of a UTF-16 pair.
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text):
  """Reads a JSON value.

  Half characters, which JSON can spell ("\\ud800") and UTF-8 can't, become
  question marks.

  Args:
    text: str.

  Returns:
    dict, list, str, number, bool or None; numbers may be NaN or infinite.

  Raises:
    ValueError: it is no JSON, is nested too deep, or has a number of more than
      4,300 digits; one line says which.
  """
  try:
    value = json.loads(text)
    if _HALF_CHARACTER.search(text):
      spelled = json.dumps(value, ensure_ascii=False)
      value = json.loads(spelled.encode("utf-8", "replace").decode("utf-8"))
  except RecursionError:
    raise ValueError("it is nested too deep") from None
  except json.JSONDecodeError as e:
    raise ValueError(
      f"it is not JSON: {e.msg} (line {e.lineno}, column {e.colno})"
    ) from None
  except ValueError:  # what int() says of very long numbers
    raise ValueError("a number has more than 4,300 digits") from None
  return value


def parse_object(text, where):
  """Reads a JSON object, such as a line of a .jsonl file.

  Args:
    text: str.
    where: file and line, for messages.

  Returns:
    dict.

  Raises:
    UserError: it is no JSON, or another kind of value.
  """
  try:
    value = parse_json(text)
  except ValueError as e:
    raise UserError(f"{where} can't be read: {e}") from None
  if not isinstance(value, dict):
    raise UserError(
      f"{where} is a JSON {type(value).__name__}; expected an object"
    )
  return value


def shorten(value):
  """Returns what a value looks like, about 60 characters of each part."""
  return _REPR.repr(value)
