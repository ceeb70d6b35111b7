"""Reads the files of a folder that somebody else wrote.

A file is read if it is a regular one and lies in the folder under a plain
name: nothing else can be trusted to end, or to be the folder's.
"""

import os

from bert_jax.data.json_text import parse_json, shorten
from bert_jax.data.regular_file import is_regular
from bert_jax.errors import UserError

# How a file begins that git-lfs has not downloaded yet.
_LFS_POINTER = b"version https://git-lfs"


def check_file(path):
  """Checks that a path holds something that can be read to its end.

  Args:
    path: `epath.Path`.

  Raises:
    UserError: it is not there, is no regular file, or stands for one that
      git-lfs would download.
  """
  try:
    if not path.exists():
      raise UserError(f"{path} is missing; expected a file")
    if not is_regular(path):
      raise UserError(f"{path} is a folder or a device; expected a file")
    with path.open("rb") as file:
      start = file.read(len(_LFS_POINTER))
  except (OSError, ValueError) as e:
    raise UserError(f"{path} can't be read: {_reason(e)}") from None
  if start == _LFS_POINTER:
    raise UserError(
      f"{path} is a git-lfs pointer; expected the file itself (git lfs pull)"
    )


def read_bytes(path):
  """Returns the bytes of a file; raises UserError as `check_file` does."""
  check_file(path)
  try:
    return path.read_bytes()
  except OSError as e:
    raise UserError(f"{path} can't be read: {_reason(e)}") from None


def read_text(path):
  """Returns the text of a UTF-8 file.

  Raises:
    UserError: as `check_file`, or it is not UTF-8; names the line.
  """
  data = read_bytes(path)
  try:
    return data.decode("utf-8-sig")
  except UnicodeDecodeError as e:
    line = data[: e.start].count(b"\n") + 1
    raise UserError(
      f"{path} line {line} is not UTF-8 (byte 0x{data[e.start]:02x}); expected "
      "UTF-8 text"
    ) from None


def load_json(path, kind=dict):
  """Returns the value of a JSON file.

  Args:
    path: `epath.Path`.
    kind: dict or list, what the value must be.

  Raises:
    UserError: as `read_text`, it is no JSON, or something else than `kind`.
  """
  try:
    value = parse_json(read_text(path))
  except ValueError as e:
    raise UserError(f"{path} can't be read: {e}") from None
  if not isinstance(value, kind):
    expected = "an object" if kind is dict else "a list"
    raise UserError(f"{path} is a {type(value).__name__}; expected {expected}")
  return value


def load_json_if_any(path):
  """Returns the object of a JSON file, an empty one where there is no file."""
  return load_json(path) if path.exists() else {}


def get(values, key, kinds, default, path):
  """Returns a value of a JSON object.

  Args:
    values: dict.
    key: str.
    kinds: type or tuple of types; bool is not taken for a number.
    default: what an absent key or null means.
    path: file of the object, for messages.

  Raises:
    UserError: the value is of another type.
  """
  value = values.get(key)
  if value is None:
    return default
  kinds = kinds if isinstance(kinds, tuple) else (kinds,)
  fits = isinstance(value, kinds)
  if not fits or (isinstance(value, bool) and bool not in kinds):
    names = " or ".join(_SPELLED.get(kind, kind.__name__) for kind in kinds)
    raise UserError(f"{key} is {shorten(value)} in {path}; expected {names}")
  return value


_SPELLED = {
  bool: "true or false",
  str: "text",
  int: "a whole number",
  float: "a number",
  dict: "an object",
  list: "a list",
}


def plain_name(name, index):
  """Checks that a file's name, as another file has it, stays in its folder.

  Args:
    name: what should be a str.
    index: file that says so, for messages.

  Returns:
    `name`.

  Raises:
    UserError: it is a path, or no name at all.
  """
  is_plain = isinstance(name, str) and name not in ("", ".", "..")
  if not is_plain or os.path.basename(name) != name or "\0" in name:
    raise UserError(
      f"{index} lists a file {shorten(name)}; expected a plain name, of a file "
      "in the same folder"
    )
  return name


def _reason(error):
  return " ".join(str(getattr(error, "strerror", None) or error).split())
