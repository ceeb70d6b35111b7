"""Paths that work on a disk and at gs://; every file of a run is written here.

Readers use what `as_path` returns like a `pathlib.Path`. Writers use the
functions below, since other things are atomic on a disk (a rename) than in a
bucket (the upload of one object). A folder in a bucket is nothing but a common
prefix of names.

gs:// goes through gcsfs, with TensorFlow installed or not. epath would ask
TensorFlow first, whose client can't be led to a test server. Listings are not
cached, since other hosts, and tensorstore in this process, write there too.
"""

import contextlib
import glob
import importlib.util
import os
import re
import tempfile
import zlib

import fsspec
from etils import epath

from bert_jax.errors import UserError

# Read by epath when the first path is used.
os.environ["EPATH_USE_TF"] = "false"
for _name in ("gs", "gcs"):
  fsspec.register_implementation(
    _name, "bert_jax.storage.gcs_client.GcsClient", clobber=True
  )
fsspec.config.conf.setdefault("gcs", {}).update(
  use_listings_cache=False, consistency="md5"
)

# What gs:// needs, by the names of modules and of packages.
_GCS_PACKAGES = {
  "gcsfs": "gcsfs",
  "google.cloud.storage": "google-cloud-storage",
}
_CHUNK_BYTES = 2**24


def is_remote(path):
  """Tells whether a path is an address, such as gs://, and not on a disk."""
  return "://" in os.fspath(path)


def as_path(path):
  """Returns the `epath.Path` for a path or an address.

  Args:
    path: str or path; ~ is the home folder.

  Raises:
    UserError: it is an address other than gs://, or gs:// lacks a package.
  """
  if not is_remote(path):
    return epath.Path(path).expanduser()
  if not os.fspath(path).startswith("gs://"):
    raise UserError(f"{path} is an address; expected a folder or gs://")
  for module, package in _GCS_PACKAGES.items():
    if not _is_installed(module):
      raise UserError(
        f"{path} needs the package {package}; expected it to be installed "
        f"(pip install {package})"
      )
  return epath.Path(path)


def _is_installed(module):
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # a parent of it is missing
    return False


def absolute(path):
  """Returns a path that does not depend on the current folder.

  Args:
    path: as for `as_path`; an address stays what it is.
  """
  path = as_path(path)
  return path if is_remote(path) else epath.Path(os.path.abspath(path))


def find(pattern):
  """Returns the sorted paths, list of str, that a pattern matches.

  Args:
    pattern: path or address with `*`, `**`, `?` or `[...]`, or without; a file
      of just this name is the only one that matches.
  """
  if not is_remote(pattern):
    pattern = os.path.expanduser(pattern)
    if os.path.isfile(pattern):
      return [pattern]
    return sorted(glob.glob(pattern, recursive=True))
  start = re.search(r"[*?[]", pattern)
  if not start:
    return [pattern] if as_path(pattern).exists() else []
  folder, _, _ = pattern[: start.start()].rpartition("/")
  rest = pattern[len(folder) + 1 :]
  return sorted(os.fspath(p) for p in as_path(folder).glob(rest))


def write_file(path, content):
  """Writes a file so that a reader sees the old content or the new, whole.

  Args:
    path: `epath.Path`; its folder is made.
    content: str or bytes.
  """
  if isinstance(content, str):
    content = content.encode("utf-8")
  with replaced_file(path) as unfinished:
    unfinished.write_bytes(content)


def append_text(path, text):
  """Appends to a file on a disk; an object in a bucket can't grow."""
  with path.open("a") as f:
    f.write(text)


@contextlib.contextmanager
def replaced_file(path):
  """Makes a file appear, or change, when it is whole.

  Args:
    path: path of the file; its folder is made.

  Yields:
    local `epath.Path` to write; after an error nothing of it stays.
  """
  path = as_path(path)
  if is_remote(path):
    with tempfile.TemporaryDirectory() as folder:
      unfinished = epath.Path(folder) / path.name
      yield unfinished
      upload_file(unfinished, path)
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  unfinished = path.with_name(f"{path.name}.unfinished")
  try:
    yield unfinished
    _write_through(unfinished)
    unfinished.replace(path)
  finally:
    unfinished.unlink(missing_ok=True)


def _write_through(path):
  """Flushes a file to its disk, so that a rename never shows half of it."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def replaced_folder(path, marker):
  """Makes a folder appear, or change, when it is whole.

  Args:
    path: path of the folder.
    marker: name of the file without which readers do not take the folder for
      complete. In a bucket it is deleted first and uploaded last.

  Yields:
    local `epath.Path` of a new folder to fill; after an error nothing of it
    stays.
  """
  path = as_path(path)
  if is_remote(path):
    with tempfile.TemporaryDirectory() as folder:
      yield epath.Path(folder)
      _replace_objects(epath.Path(folder), path, marker)
    return
  unfinished = path.with_name(f"{path.name}.unfinished")
  remove_folder(unfinished)
  unfinished.mkdir(parents=True)
  try:
    yield unfinished
    remove_folder(path)
    unfinished.rename(path)
  finally:
    remove_folder(unfinished)


def _replace_objects(folder, path, marker):
  """Uploads the files of a folder, those in folders of it too, to a bucket.

  What is there already is removed.
  """
  (path / marker).unlink(missing_ok=True)
  remove_folder(path)
  names = {
    os.path.relpath(os.path.join(parent, file), folder)
    for parent, _, files in os.walk(folder)
    for file in files
  } - {marker}
  for name in (*sorted(names), marker):
    upload_file(folder / name, path / name)


def move_folder(source, target, marker):
  """Moves a folder; at every moment one of the two is complete.

  Args:
    source: `epath.Path` of the folder.
    target: `epath.Path` of the same storage; what is there is removed.
    marker: as for `replaced_folder`; in a bucket it is deleted first.
  """
  remove_folder(target)
  if not is_remote(source):
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)
    return
  # A bucket has no rename: a kill between two copies must lose nothing.
  client = _client()
  names = client.find(os.fspath(source))
  root = os.fspath(source).removeprefix("gs://")
  client.copy(names, [f"{target}{n.removeprefix(root)}" for n in names])
  (source / marker).unlink(missing_ok=True)
  source.rmtree()


def remove_folder(path):
  """Removes a folder with all that is in it, if it is there."""
  if path.exists():
    path.rmtree()


def copy_file(source, target):
  """Copies a file to a disk; it appears there when it is whole.

  Args:
    source: `epath.Path`.
    target: local path.

  Returns:
    the CRC-32 of its bytes, int.
  """
  crc = 0
  with (
    replaced_file(target) as unfinished,
    source.open("rb") as f,
    unfinished.open("wb") as g,
  ):
    while chunk := f.read(_CHUNK_BYTES):
      crc = zlib.crc32(chunk, crc)
      g.write(chunk)
  return crc


def upload_file(source, target):
  """Copies a file from a disk to a bucket; it appears there when it is whole.

  Args:
    source: local path.
    target: `epath.Path` of an address.
  """
  _client().put_file(os.fspath(source), os.fspath(target))


def _client():
  return fsspec.filesystem("gcs")
