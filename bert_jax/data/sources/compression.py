"""Opens files on a disk or in a bucket, packed or not."""

import bz2
import contextlib
import gzip
import io
import lzma
import zlib

import pyarrow

from bert_jax.errors import UserError
from bert_jax.storage.paths import as_path

# Packed text of natural language shrinks to about a third.
RATIO = 3
FORMATS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}


def split_packing(path):
  """Returns (path without the ending of its packing, that ending or "")."""
  for suffix in FORMATS:
    if path.endswith(suffix):
      return path.removesuffix(suffix), suffix
  return path, ""


@contextlib.contextmanager
def open_unpacked(path):
  """Opens a file for reading.

  Args:
    path: str; may be an address such as gs://bucket/a.txt.gz.

  Yields:
    (binary stream of its content, binary stream of the file as stored).

  Raises:
    UserError: while it is open, where the packed data are broken.
  """
  _, suffix = split_packing(path)
  with as_path(path).open("rb") as raw:
    try:
      yield _unpack(raw, suffix), raw
    except UserError:
      raise
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as e:
      if not suffix or isinstance(e, FileNotFoundError | PermissionError):
        raise
      name = FORMATS[suffix]
      raise UserError(f"{path} is not a whole {name} file: {e}") from None


def _unpack(raw, suffix):
  if suffix == ".gz":
    return gzip.GzipFile(fileobj=raw)
  if suffix == ".bz2":
    return bz2.BZ2File(raw)
  if suffix == ".xz":
    return lzma.LZMAFile(raw)
  if suffix == ".zst":
    # Unlike the package zstandard, it notices a file that was cut.
    return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))
  # A bucket's files read no lines of bounded length by themselves.
  return io.BufferedReader(raw)
