"""Tells damage of a checkpoint from storage that does not answer.

Only damage lets a run go back to an older checkpoint. A reader fails for many
other reasons, such as a service that is overloaded or a missing permission,
and these pass or are mended; the checkpoint is as good as before.
"""

import re

DAMAGED = "damaged"
UNREADABLE = "unreadable"

# What undecodable content makes orbax, tensorstore and json raise. JSON and
# UTF-8 errors are ValueErrors.
_DECODING_ERRORS = (ValueError, KeyError, TypeError, IndexError, EOFError)
_MISSING_FILE_ERRORS = (
  FileNotFoundError,
  IsADirectoryError,
  NotADirectoryError,
)
# tensorstore raises ValueError for everything; the status stands in the text.
_TRANSIENT = re.compile(
  r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|INTERNAL"
  r"|CANCELLED|UNKNOWN)\b|service unavailable|too many requests|timed out"
  r"|input/output error|connection (reset|refused|aborted)",
  re.IGNORECASE,
)
_FORBIDDEN = re.compile(
  r"\b(PERMISSION_DENIED|UNAUTHENTICATED)\b|permission denied", re.IGNORECASE
)


def classify(error):
  """Tells what an error of a checkpoint's reader proves.

  Args:
    error: exception, after the checkpoint's structure was found right.

  Returns:
    `DAMAGED` where a file is missing or can't be decoded, and `UNREADABLE` for
    every other error.
  """
  error = _cause(error)
  if isinstance(error, _MISSING_FILE_ERRORS):
    return DAMAGED
  is_told = is_transient(error) or _FORBIDDEN.search(str(error))
  if isinstance(error, _DECODING_ERRORS) and not is_told:
    return DAMAGED
  return UNREADABLE


def is_transient(error):
  """Tells whether an error's text says that a service is out of reach."""
  return bool(_TRANSIENT.search(str(error)))


def _cause(error):
  while type(error) is Exception and error.__cause__ is not None:
    error = error.__cause__  # orbax wraps those of tensorstore
  return error
