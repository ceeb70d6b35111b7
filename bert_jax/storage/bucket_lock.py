"""One run at a time in a folder of a bucket.

The lock is an object that its holder writes anew every few seconds. Google
changes its generation each time and makes a write depend on the generation, so
two processes can't both take it, and a holder that is gone shows by a
generation that stays. No clocks are compared.
"""

import contextlib
import os
import socket
import sys
import threading
import time
import uuid

from google.api_core.exceptions import GoogleAPIError, NotFound
from google.api_core.exceptions import PreconditionFailed as Conflict
from google.cloud import storage

from bert_jax.errors import UserError
from bert_jax.storage.access import one_line_errors

# A holder that has not written for so long is gone.
_EXPIRY_SECONDS = 60


@contextlib.contextmanager
def bucket_lock(folder):
  """Holds a folder for one process; the lock ends soon after the process.

  A process whose lock was taken, as after it could not reach the bucket for
  long, ends at once with status 1.

  Args:
    folder: `epath.Path` of an address.

  Raises:
    UserError: another process holds it, or the bucket can't be written.
  """
  expiry = float(os.environ.get("BERT_JAX_LOCK_SECONDS", _EXPIRY_SECONDS))
  _, _, bucket_name, *names = folder.parts
  bucket = storage.Client().bucket(bucket_name)
  name = "/".join([*names, ".lock"])
  here = f"process {os.getpid()} on {socket.gethostname()}"
  holder = f"{here} ({uuid.uuid4().hex[:8]})"
  with one_line_errors(folder):
    generation = _take(bucket, name, holder, folder, expiry)
  released = threading.Event()
  thread = threading.Thread(
    target=_renew,
    args=(bucket, name, holder, generation, folder, expiry / 4, released),
    daemon=True,
  )
  thread.start()
  try:
    yield
  finally:
    released.set()
    thread.join()
    with contextlib.suppress(GoogleAPIError):  # it will expire
      _release(bucket, name, holder)


def _write(bucket, name, holder, generation):
  """Writes the lock.

  Args:
    bucket: `storage.Bucket`.
    name: of the object.
    holder: str, what to write.
    generation: that the object must have; 0 where there must be none.

  Returns:
    its new generation, int.

  Raises:
    Conflict: the object is of another generation, and not of this holder.
  """
  blob = bucket.blob(name)
  try:
    blob.upload_from_string(holder, if_generation_match=generation)
    return blob.generation
  except Conflict:
    # The client may have tried twice, since it lost the first answer.
    found = bucket.get_blob(name)
    if found is None or found.download_as_text() != holder:
      raise
    return found.generation


def _release(bucket, name, holder):
  found = bucket.get_blob(name)
  if found and found.download_as_text() == holder:
    found.delete(if_generation_match=found.generation)


def _take(bucket, name, holder, folder, expiry):
  """Returns the generation of the lock once it is this holder's."""
  while True:
    with contextlib.suppress(Conflict):
      return _write(bucket, name, holder, 0)
    found = bucket.get_blob(name)
    if found is None:
      continue
    other = "another process"
    with contextlib.suppress(NotFound, Conflict):
      other = found.download_as_text(if_generation_match=found.generation)
      print(
        f"{folder} was in use by {other}; waiting {expiry:g} s to see whether "
        "it still is",
        flush=True,
      )
      time.sleep(expiry)
      # Raises `Conflict` if the holder wrote it meanwhile.
      found.delete(if_generation_match=found.generation)
      continue
    if bucket.get_blob(name):
      raise UserError(
        f"{folder} is in use by {other}; expected one run per workdir (wait "
        "for it, or choose another --workdir)"
      )


def _renew(bucket, name, holder, generation, folder, period, released):
  while not released.wait(period):
    try:
      generation = _write(bucket, name, holder, generation)
    except (Conflict, NotFound):
      print(
        f"error: another process took {folder} over; expected one run per "
        "workdir",
        file=sys.stderr,
        flush=True,
      )
      os._exit(1)
    except Exception as e:  # of the client or the network; it may come back
      print(f"{folder}/.lock can't be renewed: {e!r:.200}", file=sys.stderr)
