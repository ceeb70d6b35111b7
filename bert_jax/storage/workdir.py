"""A run's folder: its paths, its lock, and the settings it was begun with.

config.json   vocab.txt   corpus/   checkpoints/<step>/
metrics.jsonl   tensorboard/
"""

import contextlib
import fcntl
import os

import ml_collections

from bert_jax.config import CHANGEABLE, default_config, differing_keys
from bert_jax.errors import UserError
from bert_jax.storage import files, paths
from bert_jax.storage.access import check_bucket

CONFIG_FILE = "config.json"


def corpus_dir(config, workdir):
  """Returns the `epath.Path` of the prepared corpus of a run."""
  if config.corpus.dir:
    return paths.as_path(config.corpus.dir)
  return paths.as_path(workdir) / "corpus"


@contextlib.contextmanager
def file_lock(path, wait=True):
  """Holds a lock for one process; it ends with the process.

  Unlike that of the library filelock, it says which process holds it and
  leaves no file behind.

  Args:
    path: local path of a file that is there while the lock is held. Its folder
      is made; if nothing else comes into it, it goes again.
    wait: whether to wait for another process to let go of it.

  Raises:
    BlockingIOError: another process holds it; the message is its id.
    UserError: `path` is a folder.
  """
  is_new = not path.parent.exists()
  with _locked_file(path, wait) as f:
    f.truncate(0)
    f.write(str(os.getpid()))
    f.flush()
    try:
      yield
    finally:
      with contextlib.suppress(FileNotFoundError):  # somebody deleted all of it
        path.unlink()
        if is_new and not any(path.parent.iterdir()):
          path.parent.rmdir()


def _locked_file(path, wait):
  """Opens and locks a file; again if its holder deleted it meanwhile."""
  while True:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
      raise UserError(f"{path} is a folder; expected a lock file (delete it)")
    f = open(path, "a+")  # noqa: SIM115 (the caller closes it)
    try:
      fcntl.flock(f, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
      if os.path.samestat(os.stat(path), os.fstat(f.fileno())):
        return f
    except FileNotFoundError:
      pass
    except BlockingIOError:
      f.seek(0)
      holder = f.read().strip() or "?"
      f.close()
      raise BlockingIOError(holder) from None
    f.close()


@contextlib.contextmanager
def run_lock(workdir):
  """Holds a workdir for one process; the lock ends with the process.

  Args:
    workdir: `epath.Path`.

  Raises:
    UserError: another process holds it, or its bucket can't be used.
  """
  if paths.is_remote(workdir):
    check_bucket(workdir)
    # Needs Google's client, which few machines have.
    from bert_jax.storage.bucket_lock import bucket_lock

    with bucket_lock(workdir):
      yield
    return
  try:
    with file_lock(workdir / ".lock", wait=False):
      yield
  except BlockingIOError as e:
    raise UserError(
      f"{workdir} is in use by process {e}; expected one run per workdir (wait "
      "for it, or choose another --workdir)"
    ) from None


def check_config(
  config, workdir, changeable=CHANGEABLE, default_config=default_config
):
  """Checks that a run may go on in its workdir with these settings.

  Args:
    config: the settings asked for.
    workdir: `epath.Path`; one without a run fits every setting.
    changeable: keys and sections that may differ.
    default_config: function that returns the settings with their defaults.

  Raises:
    UserError: the workdir was begun with other settings; names each.
  """
  if not (workdir / CONFIG_FILE).exists():
    return
  saved = load_config(workdir, default_config)
  check_same(config, saved, workdir, changeable)


def check_same(config, saved, begun, changeable=CHANGEABLE):
  """Raises UserError if settings differ from those of something begun.

  Args:
    config: the settings asked for.
    saved: the settings kept.
    begun: what they are kept in, for the message.
    changeable: keys and sections that may differ.
  """
  differing = differing_keys(config, saved, changeable)
  if differing:
    changes = "; ".join(
      f"{key} was {old!r}, now {new!r}" for key, old, new in differing
    )
    raise UserError(
      f"{begun} was begun with other settings: {changes} (use these, or "
      "another --workdir)"
    )


def save_config(config, workdir):
  """Keeps the settings of a run in its workdir."""
  files.save_json(workdir / CONFIG_FILE, config.to_dict())


def load_config(workdir, default_config=default_config):
  """Returns the settings a workdir was begun with, as a ConfigDict.

  Args:
    workdir: a run's folder.
    default_config: function that returns the settings with their defaults;
      a setting that did not exist when the run was begun has its default.

  Raises:
    UserError: there is no run in `workdir`, its settings are damaged, or its
      bucket can't be used.
  """
  path = paths.as_path(workdir) / CONFIG_FILE
  check_bucket(path)
  if not path.exists():
    raise UserError(
      f"{workdir} holds no run (no config.json); expected a --workdir of "
      "bert_jax.train"
    )
  remedy = "write the settings that the run was begun with into it"
  saved = files.load_json(path, remedy)
  try:
    return with_defaults(saved, default_config)
  except (TypeError, ValueError, AttributeError) as e:
    reason = " ".join(str(e).split())
    raise UserError(f"{path} is damaged: {reason} ({remedy})") from None


def with_defaults(saved, default_config=default_config):
  """Returns settings kept by any version as a ConfigDict.

  Args:
    saved: nested dict; a setting that it lacks has its default.
    default_config: function that returns the settings with their defaults.
  """
  config = default_config()
  with config.unlocked():
    config.update(ml_collections.ConfigDict(saved))
  return config
