"""A corpus in an object store, and each host's copy of it on a local disk.

Training maps a corpus into memory, which an object store can't do. So a corpus
that lives at an address such as gs://bucket/corpus is written on one host and
uploaded. Every other host copies its index (boundaries and vocabulary) when it
opens the corpus, and each file of token ids when a row first needs it. A corpus
on a disk, shared or not, is used where it is.
"""

import functools
import hashlib
import os
import pathlib
import shutil

from bert_jax.data import corpus as corpus_lib
from bert_jax.errors import UserError
from bert_jax.storage import files, paths
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
  shards = corpus_lib.token_files(corpus_lib.load_manifest(local))
  for name in (*shards, *corpus_lib.INDEX_FILES, "manifest.json"):
    paths.upload_file(local / name, remote / name)


def open_corpus(directory, needs_all=False):
  """Opens a finished corpus, on a disk or at an address.

  Args:
    directory: its folder or address.
    needs_all: whether all token ids will be needed, so that the disk must have
      room for all of them now.

  Returns:
    `Corpus`. Reading its tokens may raise UserError too: where a file of them
    is damaged or finds no room on the disk.

  Raises:
    UserError: no finished corpus is there, its files are not what its manifest
      says, or the disk has no room for them.
  """
  if not paths.is_remote(directory):
    return corpus_lib.open_corpus(directory)
  local, remote = local_dir(directory), paths.as_path(directory)
  manifest = corpus_lib.load_manifest(remote)
  if manifest is None:
    raise UserError(
      f"{directory} holds no prepared corpus (no manifest.json); run python -m"
      " bert_jax.prepare first"
    )
  with file_lock(local / ".lock"):
    is_there = corpus_lib.load_manifest(local) == manifest
    if not is_there:
      _remove_copy(local)
    _check_free_disk(local, _missing_bytes(local, manifest, needs_all))
    if not is_there:
      _copy_index(remote, local, manifest)
  copy_shard = functools.partial(_copy_shard, remote, local, manifest)
  return corpus_lib.open_written(local, manifest, copy_shard)


def _remove_copy(local):
  """Deletes the copy of a corpus that is another one by now."""
  (local / "manifest.json").unlink(missing_ok=True)
  for path in local.glob("tokens*.bin"):
    path.unlink()


def _copy_index(remote, local, manifest):
  """Copies all files but the token ids; the manifest appears last."""
  print(f"corpus: copying the index of {remote} to {local}")
  for name in corpus_lib.INDEX_FILES:
    crc = paths.copy_file(remote / name, local / name)
    corpus_lib.check_checksum(remote / name, crc, manifest)
  files.save_json(local / "manifest.json", manifest)


def _copy_shard(remote, local, manifest, name):
  """Copies a file of token ids unless it is there already.

  Raises:
    UserError: the disk has no room for it, or it is damaged.
  """
  path, size = local / name, manifest["file_bytes"][name]
  if corpus_lib.file_size(path) == size:
    return
  with file_lock(local / ".lock"):
    if corpus_lib.file_size(path) == size:
      return  # another process of this host was faster
    _check_free_disk(local, size)
    print(f"corpus: copying {remote / name} to {local}")
    crc = paths.copy_file(remote / name, path)
    try:
      corpus_lib.check_checksum(remote / name, crc, manifest)
    except UserError:
      path.unlink()
      raise
    corpus_lib.note_verified(local, manifest, name)


def _missing_bytes(local, manifest, needs_all):
  """Returns the bytes of the files that are still to be copied."""
  shards = corpus_lib.token_files(manifest)
  return sum(
    size
    for name, size in manifest["file_bytes"].items()
    if (needs_all or name not in shards)
    and corpus_lib.file_size(local / name) != size
  )


def _check_free_disk(local, needed):
  """Raises UserError if a disk has no room for so many bytes."""
  free = shutil.disk_usage(local).free
  if needed > free:
    raise UserError(
      f"{local} has {free / 1e9:.1f} GB of free disk; expected "
      f"{needed / 1e9:.1f} GB for a copy of the corpus (set XDG_CACHE_HOME to "
      "another disk)"
    )
