"""A tokenised corpus on disk: written once, mapped into memory ever after.

    tokens.bin     uint16, every token of every document, end to end
    sentences.bin  uint32, where each sentence starts within its document
    documents.npy  one `DOCUMENT` record per document worth training on
    vocab.txt      the WordPiece vocabulary of the token ids
    manifest.json  what it was made from, its counts and checksums
    report.json    what `prepare` measured of it

While it is being written there is also progress.json: how many chunks of text
are in, and the sizes of the files at that point. A writer that was killed
truncates the files to these sizes and goes on; the bytes come out the same.
No padding, no pairs and no masks are stored: both phases read the same files.
"""

import dataclasses
import json
import pathlib
import zlib

import numpy as np

from bert_jax.data.vocabulary import load_vocabulary
from bert_jax.errors import UserError
from bert_jax.storage import paths

DOCUMENT = np.dtype(
  [
    ("start", "<i8"),  # its first token in tokens.bin
    ("num_tokens", "<i8"),
    ("first_sentence", "<i8"),  # in sentences.bin
    ("num_sentences", "<i8"),
    ("hash", "<u8"),  # of its text
  ]
)
# One token for sentence A and one for sentence B.
MIN_DOCUMENT_TOKENS = 2
# Two to train on and two held out: a random next sentence comes from another
# document.
MIN_DOCUMENTS = 4
_STREAMS = ("tokens.bin", "sentences.bin", "documents.bin")
# Of a finished corpus, in the order to copy them.
FILES = (
  "vocab.txt",
  "tokens.bin",
  "sentences.bin",
  "documents.npy",
  "report.json",
  "manifest.json",
)


@dataclasses.dataclass(frozen=True)
class Corpus:
  """A prepared corpus, opened for reading.

  Attributes:
    vocab: list of tokens; a token's index is its id.
    tokens: uint16 [T], mapped from disk.
    sentence_starts: uint32 [S], relative to the start of the document.
    documents: `DOCUMENT` [N].
    manifest: dict, the content of manifest.json.
  """

  vocab: list
  tokens: np.ndarray
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


def open_written(directory, manifest):
  """Opens the files that `manifest` describes; see `open_corpus`."""
  for name, size in manifest["file_bytes"].items():
    path = directory / name
    found = _size(path)
    if found != size:
      raise UserError(
        f"{path} has {found} bytes; expected {size} by its manifest (delete "
        "the folder and prepare again)"
      )
  return Corpus(
    vocab=load_vocabulary(directory / "vocab.txt"),
    tokens=_map_file(directory / "tokens.bin", np.uint16),
    sentence_starts=_map_file(directory / "sentences.bin", np.uint32),
    documents=np.load(directory / "documents.npy"),
    manifest=manifest,
  )


def _map_file(path, dtype):
  # As a plain array: np.memmap's own indexing costs more than the look-up.
  return np.asarray(np.memmap(path, dtype, "r"))


def load_manifest(directory):
  """Returns the manifest of a finished corpus as a dict, or None.

  Args:
    directory: `epath.Path` or `pathlib.Path`.
  """
  path = directory / "manifest.json"
  return json.loads(path.read_text()) if path.exists() else None


def split_documents(documents, eval_fraction):
  """Parts the held-out documents from the rest, by their hash.

  A document stays on its side when others come or go, except that the
  held-out side never has fewer than two, as next sentence prediction needs.

  Args:
    documents: `DOCUMENT` [N], at least `MIN_DOCUMENTS`.
    eval_fraction: share to hold out, between 0 and 1.

  Returns:
    (training, held-out) `DOCUMENT` arrays.
  """
  order = np.argsort(documents["hash"], kind="stable")
  threshold = int(eval_fraction * 2**64)
  below = np.searchsorted(documents["hash"][order], np.uint64(threshold))
  num_held_out = min(max(2, int(below)), len(documents) - 2)
  held_out = np.zeros(len(documents), bool)
  held_out[order[:num_held_out]] = True
  return documents[~held_out], documents[held_out]


class CorpusWriter:
  """Appends encoded documents; survives being killed at any moment."""

  def __init__(self, directory, settings):
    """Opens `directory` for writing, continuing what lies there.

    Args:
      directory: `pathlib.Path` of the corpus.
      settings: JSON-able dict that names everything the bytes depend on; an
        unfinished corpus of other settings is begun anew.
    """
    self._directory = directory
    directory.mkdir(parents=True, exist_ok=True)
    self._progress_path = directory / "progress.json"
    self._progress = {
      "settings": settings,
      "num_chunks": 0,
      "num_text_bytes": 0,
      "num_tokens": 0,
      "num_sentences": 0,
      "file_bytes": dict.fromkeys(_STREAMS, 0),
      "crc32": dict.fromkeys(_STREAMS, 0),
    }
    if self._progress_path.exists():
      found = json.loads(self._progress_path.read_text())
      if found["settings"] == settings and self._holds(found["file_bytes"]):
        self._progress = found
    if self.num_chunks == 0:
      (directory / "vocab.txt").unlink(missing_ok=True)
      write_json(self._progress_path, self._progress)
    self._files = {
      name: open(directory / name, "ab")  # noqa: SIM115 (closed by close)
      for name in _STREAMS
    }
    for name, f in self._files.items():
      f.truncate(self._progress["file_bytes"][name])

  def _holds(self, file_bytes):
    """Returns whether the files have at least the sizes noted."""
    return (self._directory / "vocab.txt").exists() and all(
      _size(self._directory / name) >= size for name, size in file_bytes.items()
    )

  @property
  def num_chunks(self):
    """int, chunks of text that are in already."""
    return self._progress["num_chunks"]

  @property
  def num_text_bytes(self):
    """int, UTF-8 bytes of the text that is in already."""
    return self._progress["num_text_bytes"]

  def append(self, encoded):
    """Adds the next chunk, an `EncodedDocuments`."""
    progress = self._progress
    ends = np.cumsum(encoded.document_sentences, dtype=np.int64)
    firsts = ends - encoded.document_sentences
    sentence_ends = np.cumsum(encoded.sentence_lengths, dtype=np.int64)
    # Tokens before each sentence; the last entry is their total.
    before = np.concatenate([[0], sentence_ends])
    starts = before[firsts]

    documents = np.empty(len(firsts), DOCUMENT)
    documents["start"] = starts + progress["num_tokens"]
    documents["num_tokens"] = before[ends] - starts
    documents["first_sentence"] = firsts + progress["num_sentences"]
    documents["num_sentences"] = encoded.document_sentences
    documents["hash"] = encoded.hashes
    relative = before[:-1] - np.repeat(starts, encoded.document_sentences)
    self._write("tokens.bin", encoded.tokens)
    self._write("sentences.bin", relative.astype(np.uint32))
    self._write("documents.bin", documents)

    progress["num_chunks"] += 1
    progress["num_text_bytes"] += encoded.num_bytes
    progress["num_tokens"] += len(encoded.tokens)
    progress["num_sentences"] += len(encoded.sentence_lengths)
    write_json(self._progress_path, progress)

  def _write(self, name, array):
    data = array.tobytes()
    self._files[name].write(data)
    self._files[name].flush()
    progress = self._progress
    progress["file_bytes"][name] += len(data)
    progress["crc32"][name] = zlib.crc32(data, progress["crc32"][name])

  def close(self):
    """Closes the files; what is in stays for a later continuation."""
    for f in self._files.values():
      f.close()

  def finish(self):
    """Drops duplicates and documents too short, and writes the manifest.

    Returns:
      the manifest, a dict.

    Raises:
      UserError: fewer than `MIN_DOCUMENTS` are left.
    """
    self.close()
    progress = self._progress
    found = np.fromfile(self._directory / "documents.bin", DOCUMENT)
    long_enough = found["num_tokens"] >= MIN_DOCUMENT_TOKENS
    documents = found[long_enough]
    _, first_of_its_kind = np.unique(documents["hash"], return_index=True)
    documents = documents[np.sort(first_of_its_kind)]
    if len(documents) < MIN_DOCUMENTS:
      raise UserError(
        f"the corpus has {len(documents)} usable documents; expected at least "
        f"{MIN_DOCUMENTS}, two to train on and two held out (is there a blank "
        "line between documents?)"
      )
    with open(self._directory / "documents.npy", "wb") as f:
      np.save(f, documents)

    crc32 = dict(progress["crc32"])
    for name in ("vocab.txt", "documents.npy"):
      crc32[name] = zlib.crc32((self._directory / name).read_bytes())
    crcs = [crc32[name] for name in (*_STREAMS, "vocab.txt")]
    manifest = {
      "settings": progress["settings"],
      "num_documents": len(documents),
      "num_duplicate_documents": int(long_enough.sum()) - len(documents),
      "num_short_documents": int((~long_enough).sum()),
      "num_sentences": int(documents["num_sentences"].sum()),
      "num_tokens": int(documents["num_tokens"].sum()),
      "num_text_bytes": progress["num_text_bytes"],
      "token_bytes": 2,
      "file_bytes": {
        name: progress["file_bytes"][name]
        for name in ("tokens.bin", "sentences.bin")
      },
      "crc32": crc32,
      "fingerprint": f"{zlib.crc32(repr(crcs).encode()):08x}",
    }
    return manifest


def commit(directory, manifest):
  """Declares a corpus finished: the manifest is the last file to appear."""
  write_json(directory / "manifest.json", manifest)
  remove_scaffolding(directory)


def remove_scaffolding(directory):
  """Deletes what only the writing of a corpus needed."""
  for name in ("progress.json", "progress.tmp", "documents.bin"):
    (directory / name).unlink(missing_ok=True)


def remove_unfinished(directory):
  """Deletes what a `CorpusWriter` that can't go on has left."""
  remove_scaffolding(directory)
  for name in (*_STREAMS, "vocab.txt", "documents.npy", "report.json"):
    (directory / name).unlink(missing_ok=True)
  if directory.exists() and not any(directory.iterdir()):
    directory.rmdir()


def _size(path):
  return path.stat().st_size if path.exists() else 0


def write_json(path, content):
  """Writes JSON so that a reader sees the old file or the new one, whole."""
  paths.write_file(path, json.dumps(content, indent=2) + "\n")
