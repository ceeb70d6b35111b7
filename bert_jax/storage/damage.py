"""Tells damage of a checkpoint from storage that does not answer, or is full.

Only damage lets a run go back to an older checkpoint. A reader fails for many
other reasons, such as a service that is overloaded or a missing permission,
and these pass or are mended; the checkpoint is as good as before.
"""

import contextlib
import errno
import re

from bert_jax.errors import UserError

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
  r"|PERMISSION_DENIED|UNAUTHENTICATED|CANCELLED|UNKNOWN)\b"
  r"|service unavailable|too many requests|permission denied|timed out"
  r"|input/output error|connection (reset|refused|aborted)",
  re.IGNORECASE,
)


def classify(error):
  """Tells what an error of a checkpoint's reader proves.

  Args:
    error: exception, after the checkpoint's structure was found right.

  Returns:
    `DAMAGED` where a file is missing or can't be decoded, and `UNREADABLE` for
    every other error.
  """
  while type(error) is Exception and error.__cause__ is not None:
    error = error.__cause__  # orbax wraps those of tensorstore
  if isinstance(error, _MISSING_FILE_ERRORS):
    return DAMAGED
  if isinstance(error, _DECODING_ERRORS) and not _TRANSIENT.search(str(error)):
    return DAMAGED
  return UNREADABLE


@contextlib.contextmanager
def full_disk_told(path):
  """Turns errors of a disk without room into one line about `path`."""
  try:
    yield
  except UserError:
    raise
  except Exception as e:  # orbax wraps the system's in errors of its own
    if not _is_full(e):
      raise
    raise UserError(
      f"there is no room left on the disk of {path}; what is whole there is "
      "kept (make room and start again, it goes on from there)"
    ) from None


def _is_full(error):
  """Tells whether an error, or its cause, says that a disk is full."""
  seen = set()
  while error is not None and id(error) not in seen:
    seen.add(id(error))
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
      return True
    if re.search(r"no space left on device|quota exceeded", str(error), re.I):
      return True
    error = error.__cause__ or error.__context__
  return False
