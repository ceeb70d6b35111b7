"""A run's folder: where things lie, whose it is, and what it was begun with.

config.json   vocab.txt   corpus/   checkpoints/<step>/
metrics.jsonl   tensorboard/
"""

import contextlib
import fcntl
import json
import os

import ml_collections
from etils import epath

from bert_jax.config import differing_keys
from bert_jax.errors import UserError


def is_remote(path):
  """Tells whether a path is an address, such as gs://, and not on a disk."""
  return "://" in os.fspath(path)


def corpus_dir(config, workdir):
  """Returns the `epath.Path` of the prepared corpus of a run."""
  if config.corpus.dir:
    return epath.Path(config.corpus.dir).expanduser()
  return epath.Path(workdir) / "corpus"


@contextlib.contextmanager
def file_lock(path, wait=True):
  """Holds a lock for one process; it ends with the process.

  Args:
    path: `pathlib.Path` or local `epath.Path` of a file that is there, with
      its folder, while the lock is held.
    wait: whether to wait for another process to let go of it.

  Raises:
    BlockingIOError: another process holds it; the error's message is the id
      of that process.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  while True:
    with open(path, "a+") as f:
      try:
        fcntl.flock(f, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
      except BlockingIOError:
        f.seek(0)
        raise BlockingIOError(f.read().strip() or "?") from None
      if not _is_still_there(path, f):
        continue  # who held it has deleted it
      f.truncate(0)
      f.write(str(os.getpid()))
      f.flush()
      try:
        yield
      finally:
        path.unlink(missing_ok=True)
      return


def _is_still_there(path, file):
  try:
    return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
  except FileNotFoundError:
    return False


@contextlib.contextmanager
def run_lock(workdir):
  """Holds a workdir for one process; the lock ends with the process.

  Args:
    workdir: `epath.Path`; on gs:// there is no lock to take.

  Raises:
    UserError: another process holds it.
  """
  if is_remote(workdir):
    yield
    return
  is_new = not workdir.exists()
  try:
    with file_lock(workdir / ".lock", wait=False):
      yield
  except BlockingIOError as e:
    raise UserError(
      f"{workdir} is in use by process {e}; expected one run per workdir (wait "
      "for it, or choose another --workdir)"
    ) from None
  except UserError:
    if is_new and not list(workdir.iterdir()):
      workdir.rmdir()  # a mistake leaves nothing behind
    raise


def check_config(config, workdir):
  """Checks that a run may go on in its workdir with these settings.

  Args:
    config: the settings asked for.
    workdir: `epath.Path`; one without a run fits every setting.

  Raises:
    UserError: the workdir was begun with other settings; names each.
  """
  path = workdir / "config.json"
  if not path.exists():
    return
  differing = differing_keys(config, json.loads(path.read_text()))
  if differing:
    changes = "; ".join(
      f"{key} was {old!r}, now {new!r}" for key, old, new in differing
    )
    raise UserError(
      f"{workdir} was begun with other settings: {changes} (use these, or "
      "another --workdir)"
    )


def save_config(config, workdir):
  """Keeps the settings of a run in its workdir."""
  workdir.mkdir(parents=True, exist_ok=True)
  temporary = workdir / "config.tmp"
  temporary.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
  temporary.replace(workdir / "config.json")


def load_config(workdir):
  """Returns the settings a workdir was begun with, as a ConfigDict.

  Raises:
    UserError: there is no run in `workdir`.
  """
  path = epath.Path(workdir) / "config.json"
  if not path.exists():
    raise UserError(
      f"{workdir} holds no run (no config.json); expected a --workdir of "
      "bert_jax.train"
    )
  return ml_collections.ConfigDict(json.loads(path.read_text()))
