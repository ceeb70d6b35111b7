"""A tokenised corpus on disk: its files, and opening them for reading.

    tokens-00000.bin, tokens-00001.bin, ...
                   every token of every document, end to end: uint16, or uint32
                   where the vocabulary has more than 65,536 entries; each file
                   but the last has `shard_tokens` of the manifest
    sentences.bin  uint32, where each sentence starts within its document
    documents.npy  one `DOCUMENT` record per document worth training on
    vocab.txt      the WordPiece vocabulary of the token ids
    manifest.json  what it was made from, its counts and checksums
    report.json    what `prepare` measured of it
    verified.json  which files were found to match the manifest's checksums

No padding, no pairs and no masks are stored: both phases read the same files.
Documents with the same token ids are stored once.
"""

import contextlib
import dataclasses
import json
import pathlib
import zlib

import numpy as np

from bert_jax.data.token_shards import TokenShards
from bert_jax.data.vocabulary import load_vocabulary
from bert_jax.errors import UserError
from bert_jax.storage import files, paths

# Of the files' format. Version 1 named documents by a hash of their text;
# version 2 has all tokens in one file, tokens.bin, and is still read.
VERSION = 3
_READ_VERSIONS = (2, 3)
DOCUMENT = np.dtype(
  [
    ("start", "<i8"),  # its first token, counted over all shards
    ("num_tokens", "<i8"),
    ("first_sentence", "<i8"),  # in sentences.bin
    ("num_sentences", "<i8"),
    ("hash", "<u8"),  # of its token ids
    ("source", "<i8"),  # number of its entry in `corpus.source`
  ]
)
_MANIFEST_KEYS = {"settings", "file_bytes", "crc32", "fingerprint"}
_CHECKED_BYTES = 2**24  # at once
# Of a finished corpus, beside its token ids. The manifest is written last.
INDEX_FILES = ("vocab.txt", "sentences.bin", "documents.npy", "report.json")


@dataclasses.dataclass(frozen=True)
class Corpus:
  """A prepared corpus, opened for reading.

  Attributes:
    vocab: list of tokens; a token's index is its id.
    tokens: uint16 or uint32 [T]: `TokenShards`, or an array.
    sentence_starts: uint32 [S], relative to the start of the document.
    documents: `DOCUMENT` [N].
    manifest: dict, the content of manifest.json.
  """

  vocab: list
  tokens: TokenShards | np.ndarray
  sentence_starts: np.ndarray
  documents: np.ndarray
  manifest: dict

  @property
  def fingerprint(self):
    """str that changes with any token, boundary or vocabulary entry."""
    return self.manifest["fingerprint"]


def open_corpus(directory):
  """Opens a prepared corpus.

  Args:
    directory: `os.PathLike`, on a local disk.

  Returns:
    `Corpus`.

  Raises:
    UserError: no finished corpus is there, or a file has another size than
      the manifest says.
  """
  directory = pathlib.Path(directory)
  manifest = load_manifest(directory)
  if manifest is None:
    raise UserError(
      f"{directory} holds no prepared corpus (no manifest.json); run python -m"
      " bert_jax.prepare first"
    )
  return open_written(directory, manifest)


def open_written(directory, manifest, copy_shard=None):
  """Opens the files that `manifest` describes; see `open_corpus`.

  Args:
    directory: `pathlib.Path`.
    manifest: dict.
    copy_shard: function of the name of a file of token ids, called before it
      is mapped: the file need not be in `directory` before. None if all are.
  """
  check_version(directory, manifest)
  lacking = token_files(manifest) if copy_shard else []
  _verify(directory, manifest, lacking)
  return Corpus(
    vocab=load_vocabulary(directory / "vocab.txt"),
    tokens=open_tokens(directory, manifest, copy_shard),
    sentence_starts=map_file(directory / "sentences.bin", np.uint32),
    documents=np.load(directory / "documents.npy"),
    manifest=manifest,
  )


def token_files(manifest):
  """Returns the names of a corpus' files of token ids, a list in order."""
  return sorted(n for n in manifest["file_bytes"] if n.startswith("tokens"))


def open_tokens(directory, manifest, copy_shard=None):
  """Returns the `TokenShards` of a corpus; see `open_written`."""
  names = token_files(manifest)
  dtype = np.dtype(f"<u{manifest['token_bytes']}")
  num_tokens = sum(manifest["file_bytes"][n] for n in names) // dtype.itemsize

  def map_shard(number):
    if copy_shard:
      copy_shard(names[number])
    return map_file(directory / names[number], dtype)

  shard_tokens = manifest.get("shard_tokens", num_tokens)
  return TokenShards(map_shard, num_tokens, shard_tokens, dtype)


def check_version(directory, manifest):
  """Raises UserError if another version of the format was written there."""
  found = manifest.get("version", 1)
  if found not in _READ_VERSIONS:
    raise UserError(
      f"{directory} holds a corpus of format {found}; expected format "
      f"{' or '.join(map(str, _READ_VERSIONS))} (delete the folder and prepare "
      "again)"
    )


def _verify(directory, manifest, lacking):
  """Compares files with the manifest's checksums, once for each copy of them.

  Args:
    directory: `pathlib.Path`.
    manifest: dict.
    lacking: names of files that need not be there.

  Raises:
    UserError: one differs; names it.
  """
  noted = _noted_stamps(directory, manifest)
  stamps = {
    name: _stamp(directory / name)
    for name in manifest["crc32"]
    if name not in lacking or (directory / name).exists()
  }
  if stamps == noted:
    return
  for name in stamps:
    if noted.get(name) != stamps[name]:
      _check_file(directory / name, manifest)
  _note_stamps(directory, manifest, stamps)


def _check_file(path, manifest):
  """Raises UserError if a file is not as the manifest says."""
  size = manifest["file_bytes"].get(path.name)
  if size is not None and file_size(path) != size:
    raise UserError(
      f"{path} has {file_size(path)} bytes; expected {size} by its manifest "
      "(delete the folder and prepare again)"
    )
  check_checksum(path, checksum(path), manifest)


def check_checksum(path, found, manifest):
  """Raises UserError if a file's CRC-32 is not what the manifest says."""
  expected = manifest["crc32"].get(path.name, found)
  if found != expected:
    raise UserError(
      f"{path} has the checksum {found:08x}; expected {expected:08x} by its "
      "manifest (delete the folder and prepare again)"
    )


def note_verified(directory, manifest, name):
  """Notes that a file was compared with its checksum when it was copied."""
  stamps = _noted_stamps(directory, manifest)
  stamps[name] = _stamp(directory / name)
  _note_stamps(directory, manifest, stamps)


def _noted_stamps(directory, manifest):
  """Returns {name: stamp} of the files that were found right before."""
  match load_json(directory / "verified.json"):
    case [fingerprint, dict(stamps)] if fingerprint == manifest["fingerprint"]:
      return stamps
  return {}


def _note_stamps(directory, manifest, stamps):
  # A folder that may only be read is verified by every reader.
  with contextlib.suppress(OSError):
    write_json(directory / "verified.json", [manifest["fingerprint"], stamps])


def _stamp(path):
  """Returns [bytes, time of the last change in ns] of a file; 0 without it."""
  changed = path.stat().st_mtime_ns if path.exists() else 0
  return [file_size(path), changed]


def checksum(path, size=None):
  """Returns the CRC-32 of a file or of its first `size` bytes; 0 without it."""
  crc, left = 0, file_size(path) if size is None else size
  if not path.exists():
    return 0
  with open(path, "rb") as f:
    while chunk := f.read(min(_CHECKED_BYTES, left)):
      crc = zlib.crc32(chunk, crc)
      left -= len(chunk)
  return crc


def map_file(path, dtype):
  """Maps a file into memory as an array of `dtype`."""
  # As a plain array: np.memmap's own indexing costs more than the look-up.
  return np.asarray(np.memmap(path, dtype, "r"))


def load_manifest(directory):
  """Returns the manifest of a finished corpus as a dict, or None.

  Args:
    directory: `epath.Path` or `pathlib.Path`.

  Raises:
    UserError: the file is damaged.
  """
  path = directory / "manifest.json"
  if not path.exists():
    return None
  remedy = f"delete {directory} and prepare again"
  manifest = files.load_json(path, remedy)
  if not manifest.keys() >= _MANIFEST_KEYS:
    raise UserError(
      f"{path} is damaged; expected the JSON object that prepare wrote "
      f"({remedy})"
    )
  return manifest


def load_json(path):
  """Returns the content of a JSON file; None if it is not there or damaged."""
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError):
    return None


def split_documents(documents, eval_fraction):
  """Splits off the held-out documents, chosen by their hash.

  Adding or removing documents moves no other one, except that at least two are
  held out, as next sentence prediction needs: where the hash chooses fewer, the
  shortest documents are taken, so that a corpus of a few long books loses
  little of its text.

  Args:
    documents: `DOCUMENT` [N], at least `MIN_DOCUMENTS`.
    eval_fraction: share to hold out, between 0 and 1.

  Returns:
    (training, held-out) `DOCUMENT` arrays.
  """
  held_out = documents["hash"] < np.uint64(int(eval_fraction * 2**64))
  wanted = max(2, min(int(held_out.sum()), len(documents) - 2))
  # Held-out documents first, each side by length, then hash.
  order = np.lexsort((documents["hash"], documents["num_tokens"], ~held_out))
  held_out[:] = False
  held_out[order[:wanted]] = True
  return documents[~held_out], documents[held_out]


def weigh_documents(documents, weights):
  """Repeats documents as often as their source's weight says.

  Args:
    documents: `DOCUMENT` [N].
    weights: float [number of sources], each more than 0; 2.25 takes every
      document twice and a quarter of them, chosen by hash, once more.

  Returns:
    `DOCUMENT` [M], in the order of `documents`.
  """
  weight = np.asarray(weights, float)[documents["source"]]
  # The lower bits of the hash: the upper ones choose what is held out.
  share = (documents["hash"] % np.uint64(2**32)) / 2.0**32
  times = np.floor(weight).astype(np.int64) + (share < weight % 1)
  return np.repeat(documents, times)


def file_size(path):
  """Returns the bytes of a file; 0 without it."""
  return path.stat().st_size if path.exists() else 0


def write_json(path, content):
  """Writes JSON; readers see either the old file or the complete new one."""
  paths.write_file(path, json.dumps(content, indent=2) + "\n")
