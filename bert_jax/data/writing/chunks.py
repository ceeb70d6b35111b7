"""The text of sources in chunks, and work on them on all cores."""

import collections

import tqdm

from bert_jax.data.sources.source import SourcePiece
from bert_jax.data.writing import parallel

# Text read at once and handed to a worker; also what a killed run may lose.
CHUNK_BYTES = 2**20
# Corpora smaller than this are done before workers would have started.
_POOL_BYTES = 24 * 2**20
# So many files of an entry of `corpus.source` are enough for a sample of it.
_SAMPLED_FILES = 16


def sample_files(found, share):
  """Leaves files out of which a small share of the text is wanted.

  Args:
    found: list of `Source`.
    share: int, one part in so many is wanted.

  Returns:
    list of `Source`: of each entry every n-th, so that entries keep their
    shares of the text. n is at most `share`, and leaves `_SAMPLED_FILES` of
    each entry.
  """
  by_entry = collections.defaultdict(list)
  for source in found:
    by_entry[source.group].append(source)
  fewest = min(map(len, by_entry.values()), default=0)
  step = max(1, min(share, fewest // _SAMPLED_FILES))
  return [source for files in by_entry.values() for source in files[::step]]


def stored_bytes(found):
  """Returns the bytes of a list of `Source` on the disk, packed or not."""
  return sum(source.num_bytes for source in found)


def text_bytes(found):
  """Returns about how many bytes of text a list of `Source` has."""
  return sum(source.text_bytes for source in found)


def iterate_chunks(found, label, name_empty=False):
  """Yields lists of `SourcePiece`, `CHUNK_BYTES` each, with a progress bar."""
  chunk, size = [], 0
  total = stored_bytes(found)
  bar = tqdm.tqdm(
    desc=label, total=total, unit="B", unit_scale=True, disable=None
  )
  with bar:
    before = 0
    for source in found:
      num_blocks = 0
      for block, done in source.blocks(CHUNK_BYTES):
        num_blocks += 1
        chunk.append(SourcePiece(block, source.group, source.language))
        size += block.num_bytes
        # A block ends with a document, a little before as much was read.
        if size >= CHUNK_BYTES // 2:
          bar.update(before + done - bar.n)
          yield chunk
          chunk, size = [], 0
      if name_empty and not num_blocks:
        print(f"corpus: {source.name} holds no text; skipped")
      before += source.num_bytes
    if chunk:
      yield chunk
    bar.update(total - bar.n)


def map_chunks(function, chunks, num_bytes):
  """Maps documents, chunk by chunk and in order, on all cores if that pays."""
  if num_bytes < _POOL_BYTES or parallel.num_workers() == 1:
    return map(function, chunks)
  return parallel.ordered_map(function, chunks)
