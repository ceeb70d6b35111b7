"""A corpus in an object store, and each host's copy of it on a local disk.

Training maps a corpus into memory, which an object store can't do. So a corpus
that lives at an address such as gs://bucket/corpus is written on one host,
uploaded, and copied once to every other one. A corpus on a disk, shared or
not, is used where it is.
"""

import hashlib
import os
import pathlib
import shutil

from bert_jax.data import corpus as corpus_lib
from bert_jax.errors import UserError
from bert_jax.storage import paths
from bert_jax.storage.workdir import file_lock


def local_dir(directory):
  """Returns where on this host's disk the files of a corpus lie.

  Args:
    directory: its folder or address.

  Returns:
    `pathlib.Path`; for an address a folder below `$XDG_CACHE_HOME`, by default
    ~/.cache.
  """
  if not paths.is_remote(directory):
    return pathlib.Path(directory)
  address = os.fspath(directory)
  digest = hashlib.sha256(address.encode()).hexdigest()[:16]
  cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
  return cache.expanduser() / "bert_jax" / f"corpus-{digest}"


def upload(directory):
  """Copies a corpus that was just written to its address.

  Args:
    directory: its folder or address; a folder is there already.
  """
  if not paths.is_remote(directory):
    return
  local, remote = local_dir(directory), paths.as_path(directory)
  print(f"corpus: uploading it to {directory}")
  for name in corpus_lib.FILES:  # the manifest is the last of them
    paths.upload_file(local / name, remote / name)


def fetch(directory):
  """Makes sure that a finished corpus is on this host's disk.

  Args:
    directory: its folder or address.

  Returns:
    `pathlib.Path` to open.

  Raises:
    UserError: no finished corpus is there, or its files are not what its
      manifest says.
  """
  local = local_dir(directory)
  if not paths.is_remote(directory):
    return local
  remote = paths.as_path(directory)
  manifest = corpus_lib.load_manifest(remote)
  if manifest is None:
    raise UserError(
      f"{directory} holds no prepared corpus (no manifest.json); run python -m"
      " bert_jax.prepare first"
    )
  with file_lock(local / ".lock"):
    if corpus_lib.load_manifest(local) == manifest:
      return local
    _check_free_disk(local, manifest["file_bytes"])
    print(f"corpus: copying {directory} to {local}")
    (local / "manifest.json").unlink(missing_ok=True)
    for name in corpus_lib.FILES:
      if name != "manifest.json":
        crc = paths.copy_file(remote / name, local / name)
        _check(remote / name, crc, manifest["crc32"].get(name))
    corpus_lib.write_json(local / "manifest.json", manifest)
  return local


def _check_free_disk(local, file_bytes):
  """Raises UserError if a disk has no room for a corpus."""
  needed, free = sum(file_bytes.values()), shutil.disk_usage(local).free
  if needed > free:
    raise UserError(
      f"{local} has {free / 1e9:.1f} GB of free disk; expected "
      f"{needed / 1e9:.1f} GB for a copy of the corpus (set XDG_CACHE_HOME to "
      "another disk)"
    )


def _check(path, found, expected):
  if expected is not None and found != expected:
    raise UserError(
      f"{path} has the checksum {found:08x}; expected {expected:08x} by its "
      "manifest (delete the folder and prepare again)"
    )
