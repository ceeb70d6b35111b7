"""Writes and reads the small JSON files of a run, with a checksum in each."""

import json
import zlib

from bert_jax.errors import UserError
from bert_jax.storage import paths

_CHECKSUM = "content_crc32"


def save_json(path, content):
  """Writes a file so that `load_json` notices whatever is changed in it.

  Args:
    path: `epath.Path`; its folder is made.
    content: dict, JSON-able; gets one key more in the file.
  """
  checked = dict(content) | {_CHECKSUM: crc_of_json(content)}
  paths.write_file(path, json.dumps(checked, indent=2) + "\n")


def load_json(path, remedy):
  """Reads a file that holds a JSON object.

  Args:
    path: `epath.Path`.
    remedy: str, what to do about a damaged one.

  Returns:
    dict.

  Raises:
    UserError: it is no file, not whole, or not what `save_json` wrote. A file
      without a checksum, written by hand or by an older version, is taken as
      it is.
  """
  try:
    content = json.loads(path.read_text())
  except (ValueError, RecursionError, IsADirectoryError) as e:
    raise _damaged(path, e, remedy) from None
  if not isinstance(content, dict):
    raise _damaged(path, f"it holds {content!r:.40}", remedy)
  expected = content.pop(_CHECKSUM, None)
  if expected is not None and expected != crc_of_json(content):
    raise _damaged(
      path,
      f"its content has the checksum {crc_of_json(content)} and not "
      f"{_CHECKSUM} {expected!r:.40}",
      remedy,
    )
  return content


def crc_of_json(content):
  """Returns the CRC-32 of a JSON value, whatever the order of its keys."""
  return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _damaged(path, problem, remedy):
  problem = " ".join(str(problem).split())
  return UserError(
    f"{path} is damaged: {problem}; expected a JSON object ({remedy})"
  )
