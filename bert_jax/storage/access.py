"""What is missing where storage can't be used, told in one line."""

import contextlib
import re

from bert_jax.errors import UserError
from bert_jax.storage import paths

# Roles that hold the permissions of each kind, for the message.
_ROLES = {
  "storage.buckets": "roles/storage.legacyBucketReader",
  "storage.objects": "roles/storage.objectAdmin",
}


@contextlib.contextmanager
def one_line_errors(path):
  """Turns what storage raises into a `UserError` about a path."""
  try:
    yield
  except UserError:
    raise
  except Exception as e:  # of four clients, each with errors of its own
    raise UserError(f"{path} can't be used: {_explain(e, path)}") from None


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
