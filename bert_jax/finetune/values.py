"""What may stand in a row: each value's type is checked here, by its use.

A value comes from JSON, a table or TensorFlow Datasets: str, int, float, bool,
list, dict or None. Whatever does not fit its use is an error that names the
row: `str()` of a list or of NaN would be trained on.
"""

import math
import re

from bert_jax.data.json_text import shorten
from bert_jax.errors import UserError

# Labels that are sorted by their value.
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")


def as_text(value, where):
  """Returns a text, a str; a number is read as it is spelled.

  Args:
    value: what a row holds.
    where: source, line and column, for messages.

  Raises:
    UserError: it is null, NaN, a list or anything else.
  """
  if isinstance(value, str):
    return value
  if not _is_number(value):
    raise UserError(f"{where} has {shorten(value)}; expected text")
  return str(value)


def as_texts(value, where):
  """Returns a tuple of str of a list, such as the words of a sentence.

  Raises:
    UserError: it is no list, or not of texts.
  """
  if not isinstance(value, list):
    raise UserError(
      f"{where} has {shorten(value)}; expected a list of words or tags"
    )
  return tuple(as_text(item, where) for item in value)


def as_label(value, where):
  """Returns the name of a class, a str, or None where there is none.

  Raises:
    UserError: it is NaN, a list or anything else.
  """
  if value is None:
    return None
  if isinstance(value, bool):
    return str(value)
  return as_text(value, where).strip() or None


def as_labels(value, separator, where):
  """Returns a tuple of the names of a row's classes, perhaps none.

  Args:
    value: list, or str that `separator` parts.
    separator: str.
    where: source, line and column, for messages.

  Raises:
    UserError: it is of another type.
  """
  if not isinstance(value, list):
    value = (as_label(value, where) or "").split(separator)
  labels = (as_label(item, where) for item in value)
  return tuple(filter(None, labels))


def as_number(value, where):
  """Returns a finite float, or None for an empty text.

  Raises:
    UserError: it is no number, or none that float32 can hold.
  """
  if value is None or value == "":
    return None
  number = math.nan
  if isinstance(value, str) or _is_number(value):
    try:
      number = float(value)
    except (ValueError, OverflowError):
      number = math.nan
  if not abs(number) < 3e38:
    raise UserError(f"{where} has label {shorten(value)}; expected a number")
  return number


def _is_number(value):
  is_finite = isinstance(value, int) or (
    isinstance(value, float) and math.isfinite(value)
  )
  return is_finite and not isinstance(value, bool)


def sort_names(names):
  """Sorts labels; where all of them are whole numbers, by their value."""
  if all(_WHOLE_NUMBER.fullmatch(name) for name in names):
    return tuple(sorted(names, key=lambda name: (int(name), name)))
  return tuple(sorted(names))
