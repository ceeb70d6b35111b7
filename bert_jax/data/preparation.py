"""Raw text to vocabulary and token shards, with a report on the corpus.

Reads the text twice, in chunks, on all cores: once to count words for the
vocabulary (skipped with a given `corpus.vocab_file`), once to write token ids.
Memory does not grow with the corpus. Killed at any moment and started again,
it goes on with the chunk it was at and ends in the same bytes.
"""

import collections
import contextlib
import functools
import hashlib
import itertools
import time

import tqdm

from bert_jax.data import (
  blocks,
  corpus_cache,
  encoding,
  parallel,
  sources,
  vocabulary,
)
from bert_jax.data import corpus as corpus_lib
from bert_jax.data import report as report_lib
from bert_jax.errors import UserError
from bert_jax.storage import paths
from bert_jax.storage import workdir as workdir_lib

# Text read at once and handed to a worker; also what a killed run may lose.
CHUNK_BYTES = 2**20
# Text that the vocabulary's words are counted on, spread over the corpus.
VOCABULARY_BYTES = 2**27
# Corpora smaller than this are done before workers would have started.
_POOL_BYTES = 24 * 2**20
_PRUNED_WORDS = 4_000_000


def prepare(config, workdir, extend_vocab=0):
  """Prepares the corpus of a run, unless that is done already.

  Args:
    config: validated settings.
    workdir: the run's folder.
    extend_vocab: pieces of the text to add to `corpus.vocab_file`.

  Returns:
    `epath.Path` of the corpus.

  Raises:
    UserError: text that can't be read, too little of it, or a corpus of other
      settings in the same place. Nothing half-written stays behind.
  """
  directory = workdir_lib.corpus_dir(config, workdir)
  # Where it is written, and what other workdirs may write at the same time.
  local = corpus_cache.local_dir(directory)
  with workdir_lib.file_lock(local / ".lock"):
    manifest = corpus_lib.load_manifest(directory)
    if manifest is None:
      _prepare_anew(config, local, extend_vocab)
      corpus_cache.upload(directory)
    else:
      asked = _settings(config.corpus, extend_vocab)
      _check_settings(config.corpus, asked, manifest["settings"], directory)
      corpus_lib.remove_scaffolding(local)  # of a run killed at its end
      print(f"corpus: {directory} is prepared already")
  vocab = (directory / "vocab.txt").read_bytes()
  paths.write_file(paths.as_path(workdir) / "vocab.txt", vocab)
  return directory


def _prepare_anew(config, directory, extend_vocab):
  """Writes a corpus, or the rest of it, to a local folder."""
  found = sources.open_sources(config.corpus)
  settings = _settings(config.corpus, extend_vocab) | _text_settings(found)
  try:
    _write_corpus(config, found, settings, directory)
  except UserError:
    corpus_lib.remove_unfinished(directory)
    raise


def _check_settings(corpus, asked, found, directory):
  """Checks that a finished corpus was made with the settings asked for.

  Its text need not be there any more. Another name for the same text is as
  good, which only the text itself can show.

  Raises:
    UserError: it was not; names the settings.
  """
  changed = [key for key in asked if found.get(key) != asked[key]]
  if changed == ["source"]:
    text = _text_settings(sources.open_sources(corpus))
    changed = [] if text["source_digest"] == found["source_digest"] else changed
  if changed:
    values = "; ".join(
      f"{key} was {found.get(key)!r}, now {asked[key]!r}" for key in changed
    )
    raise UserError(
      f"{directory} holds a corpus made with another {', '.join(changed)}: "
      f"{values} (delete it or set --config.corpus.dir to another folder)"
    )


def _settings(corpus, extend_vocab):
  """Returns the settings that the bytes of the corpus depend on, a dict."""
  settings = {
    "source": corpus.source,
    "lowercase": corpus.lowercase,
    "text_key": corpus.text_key,
    "language": corpus.language,
    "one_sentence_per_line": corpus.one_sentence_per_line,
  }
  if corpus.vocab_file:
    vocab = vocabulary.load_vocabulary(corpus.vocab_file)
    settings |= {"vocab_digest": _digest(vocab)}
    return settings | ({"extend_vocab": extend_vocab} if extend_vocab else {})
  return settings | {"vocab_size": corpus.vocab_size}


def _text_settings(found):
  """Returns what the bytes of the corpus depend on in its text, a dict."""
  return {
    "source_bytes": _stored_bytes(found),
    "source_digest": _digest(f"{s.name} {s.num_bytes}" for s in found),
  }


def _digest(lines):
  return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _write_corpus(config, found, settings, directory):
  seconds = {}
  with contextlib.closing(
    corpus_lib.CorpusWriter(directory, settings)
  ) as writer:
    done_before = writer.num_text_bytes
    if writer.num_chunks:
      done = f"{writer.num_chunks:,} chunks"
      print(f"corpus: continuing in {directory} after {done}")
    else:
      vocab = _create_vocabulary(config.corpus, found, settings, seconds)
      vocabulary.save_vocabulary(directory / "vocab.txt", vocab)
    with _timed(seconds, "writing tokens"):
      for encoded in _encoded_chunks(config.corpus, found, directory, writer):
        writer.append(encoded)
      manifest = writer.finish()

  with _timed(seconds, "report"):
    opened = corpus_lib.open_written(directory, manifest)
    report = report_lib.create_report(config, opened)
    corpus_lib.write_json(directory / "report.json", report)
  corpus_lib.commit(directory, manifest)
  report_lib.print_report(report)
  megabytes = (manifest["num_text_bytes"] - done_before) / 1e6
  parts = ", ".join(f"{part} {took:.1f} s" for part, took in seconds.items())
  print(
    f"corpus: {megabytes:,.1f} MB of text in {sum(seconds.values()):,.1f} s on "
    f"{parallel.num_workers()} cores ({parts})"
  )


@contextlib.contextmanager
def _timed(seconds, part):
  """Notes in a dict how long a part took."""
  started = time.monotonic()
  yield
  seconds[part] = time.monotonic() - started


def _create_vocabulary(corpus, found, settings, seconds):
  """Reads the vocabulary given, with pieces of the text, or trains one."""
  path, extend = corpus.vocab_file, settings.get("extend_vocab")
  given = vocabulary.load_vocabulary(path) if path else None
  if given and not extend:
    return given
  with _timed(seconds, "counting words"):
    words = _count_words(corpus, found)
  with _timed(seconds, "vocabulary"):
    if given:
      return vocabulary.extend_vocabulary(given, words, extend)
    return _train_vocabulary(words, corpus.vocab_size)


def _encoded_chunks(corpus, found, directory, writer):
  """Yields the chunks that are not in yet, encoded."""
  encode = functools.partial(
    encoding.encode,
    directory / "vocab.txt",
    corpus.lowercase,
    corpus.language,
    corpus.one_sentence_per_line,
  )
  chunks = _chunks(found, "writing tokens", name_empty=True)
  chunks = itertools.islice(chunks, writer.num_chunks, None)
  yield from _map(encode, chunks, _text_bytes(found))


def _count_words(corpus, found):
  """Counts normalised words over the corpus, evenly spread."""
  stride = 1 + _text_bytes(found) // VOCABULARY_BYTES
  chunks = itertools.islice(_chunks(found, "counting words"), 0, None, stride)
  counts = collections.Counter()
  text_bytes = _text_bytes(found) // stride
  for chunk in _map(vocabulary.count_words, chunks, text_bytes):
    counts.update(chunk)
    if len(counts) > _PRUNED_WORDS:
      counts = collections.Counter({w: n for w, n in counts.items() if n > 1})
  words = vocabulary.normalize_counts(counts, corpus.lowercase)
  if not words:
    names = ", ".join(s.name for s in found[:3])
    raise UserError(f"there is no text in {names}; expected documents")
  return words


def _train_vocabulary(words, vocab_size):
  vocab, left_out = vocabulary.train_vocabulary(words, vocab_size)
  if left_out:
    share = sum(words[w] for w in words if set(w) & set(left_out))
    print(
      f"vocabulary: {len(left_out):,} rare characters of "
      f"{share / sum(words.values()):.4%} of the words left out"
    )
  return vocab


def _stored_bytes(found):
  return sum(source.num_bytes for source in found)


def _text_bytes(found):
  return sum(source.text_bytes for source in found)


def _chunks(found, label, name_empty=False):
  """Yields lists of blocks of about `CHUNK_BYTES`, with a progress bar."""
  chunk, size = [], 0
  total = _stored_bytes(found)
  bar = tqdm.tqdm(
    desc=label, total=total, unit="B", unit_scale=True, disable=None
  )
  with bar:
    before = 0
    for source in found:
      num_blocks = 0
      for block, done in source.blocks(CHUNK_BYTES):
        num_blocks += 1
        chunk.append(block)
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


def _map(function, chunks, text_bytes):
  """Maps documents, chunk by chunk and in order, on all cores if that pays."""
  function = functools.partial(blocks.apply, function)
  if text_bytes < _POOL_BYTES or parallel.num_workers() == 1:
    return map(function, chunks)
  return parallel.ordered_map(function, chunks)
