"""A run's folder: where things lie, whose it is, and what it was begun with.

config.json   vocab.txt   corpus/   checkpoints/<step>/
metrics.jsonl   tensorboard/
"""

import contextlib
import fcntl
import json
import os
import pathlib

import ml_collections
from etils import epath

from bert_jax.config import CHANGEABLE, differing_keys
from bert_jax.errors import UserError


def corpus_dir(config, workdir):
  """Returns the `pathlib.Path` of the prepared corpus of a run."""
  if config.corpus.dir:
    return pathlib.Path(config.corpus.dir).expanduser()
  return pathlib.Path(workdir) / "corpus"


@contextlib.contextmanager
def run_lock(workdir):
  """Holds a workdir for one process; the lock ends with the process.

  Args:
    workdir: `epath.Path`; on gs:// there is no lock to take.

  Raises:
    UserError: another process holds it.
  """
  if "://" in os.fspath(workdir):
    yield
    return
  is_new = not workdir.exists()
  workdir.mkdir(parents=True, exist_ok=True)
  path = workdir / ".lock"
  with open(path, "a+") as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      f.seek(0)
      raise UserError(
        f"{workdir} is in use by process {f.read().strip() or '?'}; expected "
        "one run per workdir (wait for it, or choose another --workdir)"
      ) from None
    f.truncate(0)
    f.write(str(os.getpid()))
    f.flush()
    try:
      yield
    except UserError:
      if is_new and list(workdir.iterdir()) == [path]:
        path.unlink()
        workdir.rmdir()  # a mistake leaves nothing behind
      raise


def check_config(config, workdir, changeable=CHANGEABLE):
  """Checks that a run may go on in its workdir with these settings.

  Args:
    config: the settings asked for.
    workdir: `epath.Path`; one without a run fits every setting.
    changeable: keys and sections that may differ.

  Raises:
    UserError: the workdir was begun with other settings; names each.
  """
  path = workdir / "config.json"
  if not path.exists():
    return
  differing = differing_keys(config, json.loads(path.read_text()), changeable)
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
