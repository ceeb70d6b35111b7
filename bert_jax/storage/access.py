"""Errors of storage in one line: what is missing, full or out of reach."""

import contextlib
import errno
import re
import traceback

from bert_jax.errors import StorageError, UserError
from bert_jax.storage import damage, paths

# errno of a disk that is full, or that as a whole can't be used.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNUSABLE = (
  errno.EACCES,
  errno.EPERM,
  errno.EROFS,
  errno.EIO,
  errno.ESTALE,
  errno.EMFILE,
  errno.ENFILE,
)
_MISPLACED = (IsADirectoryError, NotADirectoryError, FileExistsError)
# What a service says that will say the same to the next request.
_FINAL = re.compile(
  r"forbidden|permission|anonymous caller|credentials|does not exist|not found",
  re.IGNORECASE,
)
# Packages that speak to a bucket.
_CLIENTS = ("aiohttp", "gcsfs", "google", "requests", "urllib3")

# Roles that hold the permissions of each kind, for the message.
_ROLES = {
  "storage.buckets": "roles/storage.legacyBucketReader",
  "storage.objects": "roles/storage.objectAdmin",
}


@contextlib.contextmanager
def one_line_errors(path):
  """Turns every error into a `UserError` about a path."""
  try:
    yield
  except UserError:
    raise
  except Exception as e:  # orbax and each storage client have their own
    kind = StorageError if damage.is_transient(e) else UserError
    raise kind(f"{path} can't be used: {_explain(e, path)}") from None


def _explain(error, path):
  text = " ".join(str(error).split())
  if "Anonymous caller" in text or "Credentials" in type(error).__name__:
    return (
      "there are no Google credentials here; expected a service account or "
      "gcloud auth application-default login"
    )
  permission = re.search(r"(storage\.[a-z]+)\.[A-Za-z]+", text)
  if permission and permission[1] in _ROLES:
    return (
      f"the permission {permission[0]} is missing; expected "
      f"{_ROLES[permission[1]]} on the bucket (gcloud storage buckets "
      "add-iam-policy-binding)"
    )
  if paths.is_remote(path) and "does not exist" in text:
    return "there is no such bucket; expected one that exists"
  return text[:200] or type(error).__name__


@contextlib.contextmanager
def storage_errors_told(path):
  """Turns errors of storage into one line about a path; leaves all others.

  Args:
    path: folder that is written or read inside.

  Raises:
    UserError: the disk is full, may not be used, or the folder is gone.
    StorageError: a bucket does not answer.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as e:  # orbax wraps the system's in errors of its own
    told = _tell(list(_chain(e)), path)
    if told is None:
      raise
    raise told from None


def _chain(error):
  """Yields an error and those that it was raised from."""
  seen = set()
  while error is not None and id(error) not in seen:
    seen.add(id(error))
    yield error
    error = error.__cause__ or error.__context__


def _tell(errors, path):
  """Returns a `UserError` for a chain of errors, or None if not of storage."""
  numbers = {getattr(e, "errno", None): e for e in reversed(errors)}
  text = " ".join(" ".join(str(e).split()) for e in errors)
  if numbers.keys() & set(_FULL) or re.search(
    r"no space left on device|quota exceeded|file too large", text, re.I
  ):
    return UserError(
      f"there is no room left on the disk of {path}; what is whole there is "
      "kept (make room and start again, it goes on from there)"
    )
  for number in _UNUSABLE:
    if number in numbers:
      e = numbers[number]
      name = getattr(e, "filename", None) or path
      return UserError(
        f"{name} can't be used: {e.strerror}; what is whole in {path} is kept "
        "(mend it and start again, it goes on from there)"
      )
  if paths.is_remote(path):
    return _tell_bucket(errors, text, path)
  return _tell_misplaced(errors, path)


def _tell_bucket(errors, text, path):
  """Returns what a client of buckets raised as one line, or None."""
  if not (damage.is_transient(text) or any(map(_is_clients, errors))):
    return None
  reason = _explain(errors[0], path)
  if _FINAL.search(text):
    return UserError(f"{path} can't be used: {reason}")
  return StorageError(
    f"{path} does not answer: {reason} (start again, it goes on from the "
    "newest checkpoint)"
  )


def _tell_misplaced(errors, path):
  """Returns a `UserError` for a missing file, or a folder in its place."""
  for e in errors:
    if isinstance(e, _MISPLACED):
      text = " ".join(str(e).split())
      return UserError(
        f"{path} has a folder where a file belongs, or a file where a folder "
        f"does: {text} (move it away)"
      )
    if isinstance(e, FileNotFoundError):
      if not paths.as_path(path).exists():
        return UserError(f"{path} is gone; expected it to stay during the run")
      if str(e.filename).startswith(f"{path}/"):
        return UserError(f"{e.filename} is missing; expected it in the run")
  return None


def _is_clients(error):
  """Tells whether an error was raised within a client of buckets."""
  modules = (
    frame.f_globals.get("__name__", "")
    for frame, _ in traceback.walk_tb(error.__traceback__)
  )
  return any(module.split(".")[0] in _CLIENTS for module in modules)


def check_bucket(path):
  """Asks for the bucket of an address, as orbax will; does nothing for a disk.

  Raises:
    UserError: there is no such bucket, or no right to see it.
  """
  if not paths.is_remote(path):
    return
  from google.cloud import storage

  with one_line_errors(path):
    storage.Client().get_bucket(path.parts[2])
