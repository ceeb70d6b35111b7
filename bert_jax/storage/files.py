"""Reads the small files of a run, and says which one is damaged."""

import json

from bert_jax.errors import UserError


def load_json(path, remedy):
  """Reads a file that holds a JSON object.

  Args:
    path: `epath.Path`.
    remedy: str, what to do about a damaged one.

  Returns:
    dict.

  Raises:
    UserError: it is no file, or not whole.
  """
  try:
    content = json.loads(path.read_text())
  except (ValueError, RecursionError, IsADirectoryError) as e:
    raise _damaged(path, e, remedy) from None
  if not isinstance(content, dict):
    raise _damaged(path, f"it holds {content!r:.40}", remedy)
  return content


def _damaged(path, problem, remedy):
  problem = " ".join(str(problem).split())
  return UserError(
    f"{path} is damaged: {problem}; expected a JSON object ({remedy})"
  )
