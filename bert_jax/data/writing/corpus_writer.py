"""Writes a tokenised corpus; see `corpus.py` for its files.

While a corpus is being written, progress.json says how many chunks of text are
written, and the sizes and checksums of the files at that point. After a kill,
the next writer truncates the files to these sizes and continues; the bytes are
those of a writer that was never killed.
"""

import collections
import dataclasses
import os
import zlib

import numpy as np

from bert_jax.data.corpus import (
  DOCUMENT,
  INDEX_FILES,
  VERSION,
  checksum,
  file_size,
  load_json,
  open_tokens,
  write_json,
)
from bert_jax.data.token_shards import shard_name
from bert_jax.errors import UserError
from bert_jax.storage import files

# One token for sentence A and one for sentence B.
MIN_DOCUMENT_TOKENS = 2
# Two to train on and two held out: a random next sentence comes from another
# document.
MIN_DOCUMENTS = 4
# Tokens of each file of token ids: 1 GiB at two bytes a token.
SHARD_TOKENS = 2**29


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
      "shard_tokens": SHARD_TOKENS,
      "token_bytes": 0,
      "num_chunks": 0,
      "counts": {},
      "num_tokens": 0,
      "num_sentences": 0,
      "file_bytes": {"sentences.bin": 0, "documents.bin": 0},
      "crc32": {"sentences.bin": 0, "documents.bin": 0},
      "tokens_crc32": 0,  # of all token ids, however they lie in files
    }
    found = load_json(self._progress_path)
    if self._fits(found):
      self._progress = found
    self._remove_unnoted()
    if self.num_chunks == 0:
      write_json(self._progress_path, self._progress)
    for name, size in self._progress["file_bytes"].items():
      with open(directory / name, "ab") as f:
        f.truncate(size)
    written = np.fromfile(directory / "documents.bin", DOCUMENT)
    self._seen = _Hashes(written["hash"])

  def _remove_unnoted(self):
    """Deletes files that progress.json does not tell of."""
    for path in self._directory.glob("tokens*.bin"):
      if path.name not in self._progress["file_bytes"]:
        path.unlink()
    if self.num_chunks == 0:
      (self._directory / "vocab.txt").unlink(missing_ok=True)

  def _fits(self, progress):
    """Returns whether the files still begin with what progress.json says."""
    if not isinstance(progress, dict):
      return False
    if progress.keys() != self._progress.keys():
      return False
    for key in ("settings", "shard_tokens"):
      if progress[key] != self._progress[key]:
        return False
    return (self._directory / "vocab.txt").exists() and all(
      file_size(self._directory / name) >= size
      and checksum(self._directory / name, size) == progress["crc32"][name]
      for name, size in progress["file_bytes"].items()
    )

  @property
  def num_chunks(self):
    """int, chunks of text that are written already."""
    return self._progress["num_chunks"]

  @property
  def num_text_bytes(self):
    """int, UTF-8 bytes of the text that is written already."""
    return self._progress["counts"].get("num_text_bytes", 0)

  def append(self, encoded):
    """Adds the next chunk, an `EncodedDocuments`, without its duplicates."""
    progress = self._progress
    encoded, dropped = self._without_duplicates(encoded)
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
    documents["source"] = encoded.sources
    relative = before[:-1] - np.repeat(starts, encoded.document_sentences)
    self._write_tokens(encoded.tokens)
    self._write("sentences.bin", relative.astype(np.uint32))
    self._write("documents.bin", documents)

    progress["num_chunks"] += 1
    counts = collections.Counter(progress["counts"])
    counts.update(encoded.counts)
    counts.update(dropped)
    progress["counts"] = dict(sorted(counts.items()))
    progress["num_sentences"] += len(encoded.sentence_lengths)
    write_json(self._progress_path, progress)

  def _without_duplicates(self, encoded):
    """Drops documents that are too short or whose token ids were seen.

    Returns:
      (`EncodedDocuments`, {"num_duplicate_documents": ..., ...}).
    """
    sentence_document = np.repeat(
      np.arange(len(encoded.hashes)), encoded.document_sentences
    )
    num_tokens = np.bincount(
      sentence_document,
      weights=encoded.sentence_lengths,
      minlength=len(encoded.hashes),
    )
    is_long = num_tokens >= MIN_DOCUMENT_TOKENS
    kept = is_long.copy()
    kept[is_long] = self._seen.add(encoded.hashes[is_long])
    in_kept = kept[sentence_document]
    dropped = {
      "num_short_documents": int((~is_long).sum()),
      "num_duplicate_documents": int((is_long & ~kept).sum()),
    }
    if kept.all():
      return encoded, dropped
    return dataclasses.replace(
      encoded,
      tokens=encoded.tokens[np.repeat(in_kept, encoded.sentence_lengths)],
      sentence_lengths=encoded.sentence_lengths[in_kept],
      document_sentences=encoded.document_sentences[kept],
      hashes=encoded.hashes[kept],
      sources=encoded.sources[kept],
    ), dropped

  def _write_tokens(self, tokens):
    """Appends token ids to the last shard, and begins new ones."""
    progress = self._progress
    progress["token_bytes"] = tokens.itemsize
    crc = progress["tokens_crc32"]
    progress["tokens_crc32"] = zlib.crc32(tokens.tobytes(), crc)
    while len(tokens):
      number, used = divmod(progress["num_tokens"], SHARD_TOKENS)
      part, tokens = np.split(tokens, [SHARD_TOKENS - used])
      self._write(shard_name(number), part)
      progress["num_tokens"] += len(part)

  def _write(self, name, array):
    data = array.tobytes()
    with open(self._directory / name, "ab") as f:
      f.write(data)
      f.flush()
      # On the disk before progress.json says so.
      os.fdatasync(f.fileno())
    sizes, crcs = self._progress["file_bytes"], self._progress["crc32"]
    sizes[name] = sizes.get(name, 0) + len(data)
    crcs[name] = zlib.crc32(data, crcs.get(name, 0))

  def finish(self, entries, drop=None):
    """Writes documents.npy and makes the manifest.

    Args:
      entries: list of dicts that describe the entries of `corpus.source`.
      drop: function of (`TokenShards`, `DOCUMENT` [N]) that returns which
        documents to leave out, bool [N]; None leaves none out.

    Returns:
      the manifest, a dict.

    Raises:
      UserError: fewer than `MIN_DOCUMENTS` are left.
    """
    progress = self._progress
    documents = np.fromfile(self._directory / "documents.bin", DOCUMENT)
    num_near = 0
    if drop and len(documents):
      is_dropped = drop(open_tokens(self._directory, progress), documents)
      num_near = int(is_dropped.sum())
      documents = documents[~is_dropped]
    if len(documents) < MIN_DOCUMENTS:
      raise UserError(
        f"the corpus has {len(documents)} usable documents; expected at least "
        f"{MIN_DOCUMENTS}, two to train on and two held out (is there a blank "
        "line between documents?)"
      )
    path = self._directory / "documents.npy"
    with open(path, "wb") as f:
      np.save(f, documents)
      f.flush()
      os.fdatasync(f.fileno())

    crc32 = dict(progress["crc32"])
    del crc32["documents.bin"]
    crc32["documents.npy"] = checksum(path)
    crc32["vocab.txt"] = checksum(self._directory / "vocab.txt")
    return {
      "version": VERSION,
      "settings": progress["settings"],
      "entries": entries,
      "num_documents": len(documents),
      "num_near_duplicates_dropped": num_near,
      "num_sentences": int(documents["num_sentences"].sum()),
      "num_tokens": int(documents["num_tokens"].sum()),
      **progress["counts"],
      "token_bytes": progress["token_bytes"],
      "shard_tokens": progress["shard_tokens"],
      "file_bytes": {
        name: size
        for name, size in progress["file_bytes"].items()
        if name != "documents.bin"
      },
      "crc32": crc32,
      "fingerprint": _fingerprint(crc32, progress["tokens_crc32"]),
    }


def _fingerprint(crc32, tokens_crc32):
  """Names a corpus, whatever the size of its files of token ids.

  Args:
    crc32: dict of file name to CRC-32.
    tokens_crc32: CRC-32 of all token ids.

  Returns:
    str; that of a corpus of one file, tokens.bin.
  """
  of_index = {n: crc for n, crc in crc32.items() if n in INDEX_FILES}
  parts = sorted({**of_index, "tokens.bin": tokens_crc32}.items())
  return f"{zlib.crc32(repr(parts).encode()):08x}"


class _Hashes:
  """A growing set of 64-bit hashes; 8 bytes each but for the latest."""

  _MAX_NEW = 500_000

  def __init__(self, hashes):
    self._sorted = np.sort(hashes)
    self._new = set()

  def add(self, hashes):
    """Adds hashes, uint64 [N]; returns which are new, bool [N]."""
    at = np.searchsorted(self._sorted, hashes)
    at = np.minimum(at, max(len(self._sorted) - 1, 0))
    is_old = np.zeros(len(hashes), bool)
    if len(self._sorted):
      is_old = self._sorted[at] == hashes
    is_first = np.zeros(len(hashes), bool)
    for i in np.flatnonzero(~is_old):
      value = int(hashes[i])
      is_first[i] = value not in self._new
      self._new.add(value)
    if len(self._new) > self._MAX_NEW:
      new = np.fromiter(self._new, np.uint64, len(self._new))
      self._sorted = np.sort(np.concatenate([self._sorted, new]))
      self._new.clear()
    return is_first


def commit(directory, manifest):
  """Declares a corpus finished: the manifest is the last file to appear."""
  files.save_json(directory / "manifest.json", manifest)
  remove_scaffolding(directory)


def remove_scaffolding(directory):
  """Deletes what only the writing of a corpus needed."""
  for name in ("progress.json", "progress.json.unfinished", "documents.bin"):
    (directory / name).unlink(missing_ok=True)


def remove_empty(directory):
  """Deletes what a `CorpusWriter` has left unless it wrote a chunk of text."""
  progress = load_json(directory / "progress.json")
  if isinstance(progress, dict) and progress.get("num_chunks"):
    return
  remove_scaffolding(directory)
  for name in (*INDEX_FILES, "manifest.json", "verified.json"):
    (directory / name).unlink(missing_ok=True)
  for path in directory.glob("tokens*.bin"):
    path.unlink()
  if directory.exists() and not any(directory.iterdir()):
    directory.rmdir()
