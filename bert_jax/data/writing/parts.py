"""Token ids of single sources, encoded on many machines and merged on one.

    parts/settings.json    what the parts were made from
    parts/vocab.txt        the vocabulary of all of them
    parts/00007/00002.npz  the third chunk of text of the eighth source
    parts/00007/done       how many chunks the source has

A source is encoded whole by one worker; any worker may take any source, in any
order. What is merged is the same to the byte as what one machine writes.
"""

import collections
import contextlib
import json
import shutil

import numpy as np

from bert_jax.data.corpus import load_json, write_json
from bert_jax.data.encoding import EncodedDocuments
from bert_jax.errors import UserError

_ARRAYS = (
  "tokens",
  "sentence_lengths",
  "document_sentences",
  "hashes",
  "sources",
)


def folder(directory):
  """Returns where the parts of a corpus lie."""
  return directory / "parts"


def write_source(parts, number, encoded_chunks):
  """Stores the chunks of a source, unless they are there already.

  Args:
    parts: `pathlib.Path` of all parts.
    number: int, of the source.
    encoded_chunks: iterable of `EncodedDocuments`; not touched if the source
      is done.
  """
  directory = parts / f"{number:05d}"
  if (directory / "done").exists():
    return
  directory.mkdir(parents=True, exist_ok=True)
  num_chunks = 0
  for encoded in encoded_chunks:
    arrays = {name: getattr(encoded, name) for name in _ARRAYS}
    counts = json.dumps([dict(encoded.counts), encoded.problems])
    with open(directory / f"{num_chunks:05d}.npz", "wb") as f:
      np.savez(f, counts=counts, **arrays)
    num_chunks += 1
  write_json(directory / "done", num_chunks)


def read_chunks(parts, num_sources):
  """Yields the `EncodedDocuments` of all sources, in order.

  Raises:
    UserError: a source is not done.
  """
  done = [load_json(parts / f"{n:05d}" / "done") for n in range(num_sources)]
  if None in done:
    raise UserError(
      f"{parts} lacks {done.count(None)} of {num_sources} sources, such as "
      f"number {done.index(None)}; expected all (run the other --part, or "
      "delete the folder)"
    )
  for number, num_chunks in enumerate(done):
    for chunk in range(num_chunks):
      yield _read(parts / f"{number:05d}" / f"{chunk:05d}.npz")


def _read(path):
  with np.load(path) as stored:
    arrays = {name: stored[name] for name in _ARRAYS}
    counts, problems = json.loads(str(stored["counts"]))
  return EncodedDocuments(
    **arrays, counts=collections.Counter(counts), problems=problems
  )


def check_settings(parts, settings):
  """Notes what the parts are made from, or compares it with what was noted.

  Raises:
    UserError: they were made from something else.
  """
  path = parts / "settings.json"
  if not path.exists():
    write_json(path, settings)
  elif load_json(path) != settings:
    raise UserError(
      f"{path} holds other settings or other text; expected those of this "
      f"command (delete {parts} to begin anew)"
    )


def remove(parts):
  """Deletes the parts of a corpus that is finished."""
  with contextlib.suppress(FileNotFoundError):
    shutil.rmtree(parts)
