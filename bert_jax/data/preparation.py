"""Raw text to vocabulary and token shards, with a report on the corpus.

Reads the text twice, in chunks, on all cores: once to count words for the
vocabulary (skipped with a given `corpus.vocab_file`), once to write token ids.
Memory does not grow with the corpus. A run that was killed continues with the
chunk it was at and produces the same bytes.
"""

import collections
import contextlib
import functools
import hashlib
import itertools
import time

from bert_jax.data import corpus as corpus_lib
from bert_jax.data import (
  corpus_cache,
  encoding,
  vocabulary,
)
from bert_jax.data import report as report_lib
from bert_jax.data.sources import spec
from bert_jax.data.tokenization import WordRules
from bert_jax.data.writing import corpus_writer, duplicates, parallel
from bert_jax.data.writing import parts as parts_lib
from bert_jax.data.writing.chunks import (
  iterate_chunks,
  map_chunks,
  sample_files,
  stored_bytes,
  text_bytes,
)
from bert_jax.errors import UserError
from bert_jax.storage import files, paths
from bert_jax.storage import workdir as workdir_lib

# Text that the vocabulary's words are counted on, spread over the corpus.
VOCABULARY_BYTES = 2**27
_NAMED_PROBLEMS = 10  # rows skipped that are printed
_PRUNED_WORDS = 4_000_000
# Keys of `corpus` that the bytes of a corpus depend on.
_SETTINGS = (
  "source",
  "lowercase",
  "strip_accents",
  "split_long_words",
  "text_key",
  "language",
  "one_sentence_per_line",
  "join_lines",
  "file_is_document",
  "near_duplicates",
)


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
      settings in the same place. What was written before stays, so that the
      same command goes on from there.
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
      corpus_lib.check_version(directory, manifest)
      asked = _settings(config.corpus, extend_vocab)
      _check_settings(config.corpus, asked, manifest["settings"], directory)
      # A run that was killed at its very end leaves these.
      corpus_writer.remove_scaffolding(local)
      print(f"corpus: {directory} is prepared already")
      _say_if_text_changed(config.corpus, manifest["settings"], directory)
  vocab = (directory / "vocab.txt").read_bytes()
  paths.write_file(paths.as_path(workdir) / "vocab.txt", vocab)
  return directory


def _prepare_anew(config, directory, extend_vocab):
  """Writes a corpus, or the rest of it, to a local folder."""
  found = spec.open_sources(config.corpus)
  settings = _settings(config.corpus, extend_vocab) | _text_settings(found)
  try:
    _write_corpus(config, found, settings, directory)
  except UserError:
    corpus_writer.remove_empty(directory)
    raise


def prepare_part(config, workdir, number, num_parts):
  """Encodes every n-th source of a run's corpus; `prepare` merges them.

  The first of all parts makes the vocabulary, while the others wait.

  Args:
    config: validated settings.
    workdir: the run's folder, on a disk that all machines share.
    number: int from 0, which part.
    num_parts: int, how many there are.

  Raises:
    UserError: as `prepare` does, or the folder is an address.
  """
  directory = workdir_lib.corpus_dir(config, workdir)
  if paths.is_remote(directory):
    raise UserError(
      f"the corpus lies at {directory}; expected a folder that all machines "
      "share (set --config.corpus.dir)"
    )
  parts = parts_lib.folder(corpus_cache.local_dir(directory))
  found = spec.open_sources(config.corpus)
  settings = _settings(config.corpus, 0) | _text_settings(found)
  with workdir_lib.file_lock(parts / ".lock"):
    parts_lib.check_settings(parts, settings)
    vocab_path = parts / "vocab.txt"
    if not vocab_path.exists():
      vocab = _create_vocabulary(config.corpus, found, settings, {})
      vocabulary.save_vocabulary(vocab_path, vocab)
  encode = functools.partial(
    encoding.encode, vocab_path, _encoding_rules(config.corpus)
  )
  for index in range(number, len(found), num_parts):
    source = found[index]
    chunks = iterate_chunks([source], source.name)
    encoded = map_chunks(encode, chunks, source.text_bytes)
    parts_lib.write_source(parts, index, encoded)
    print(f"corpus: part {number} of {num_parts}: {source.name} is encoded")


def _check_settings(corpus, asked, found, directory):
  """Checks that a finished corpus was made with the settings asked for.

  Its text need not be there any more. Another name for the same text is as
  good, which only the text itself can show.

  Raises:
    UserError: it was not; names the settings.
  """
  changed = [key for key in asked if found.get(key) != asked[key]]
  if changed == ["source"]:
    text = _text_settings(spec.open_sources(corpus))
    changed = [] if text["source_digest"] == found["source_digest"] else changed
  if changed:
    values = "; ".join(
      f"{key} was {found.get(key)!r}, now {asked[key]!r}" for key in changed
    )
    raise UserError(
      f"{directory} holds a corpus made with another {', '.join(changed)}: "
      f"{values} (delete it or set --config.corpus.dir to another folder)"
    )


def _say_if_text_changed(corpus, found, directory):
  """Prints a line if files were added, changed or deleted since."""
  specs = [entry.spec for entry in spec.parse_entries(corpus)]
  if any(s.startswith(("tfds:", "hf:")) for s in specs):
    return  # a data set of some version does not change
  try:
    now = _text_settings(spec.open_sources(corpus))
  except UserError:
    return  # the text is not there any more, and not needed
  if now["source_digest"] != found["source_digest"]:
    print(
      "corpus: the files of corpus.source have changed since (they had "
      f"{found['source_bytes']:,} bytes, now {now['source_bytes']:,}); the "
      f"corpus prepared before is used. To prepare anew, delete {directory} or "
      "set --config.corpus.dir to a new folder"
    )


def _settings(corpus, extend_vocab):
  """Returns the settings that the bytes of the corpus depend on, a dict."""
  settings = {key: corpus[key] for key in _SETTINGS}
  if corpus.vocab_file:
    vocab = vocabulary.load_vocabulary(corpus.vocab_file)
    settings |= {"vocab_digest": _digest(vocab)}
    return settings | ({"extend_vocab": extend_vocab} if extend_vocab else {})
  return settings | {"vocab_size": corpus.vocab_size}


def _text_settings(found):
  """Returns what identifies the text of a corpus, a dict."""
  return {
    "source_bytes": stored_bytes(found),
    "source_digest": _digest(
      f"{s.group} {s.language} {s.name} {s.num_bytes}" for s in found
    ),
  }


def _digest(lines):
  return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _write_corpus(config, found, settings, directory):
  seconds = {}
  writer = corpus_writer.CorpusWriter(directory, settings)
  done_before = writer.num_text_bytes
  if writer.num_chunks:
    done = f"{writer.num_chunks:,} chunks"
    print(f"corpus: continuing in {directory} after {done}")
  else:
    parts = parts_lib.folder(directory)
    if parts.exists():
      parts_lib.check_settings(parts, settings)
      vocab = vocabulary.load_vocabulary(parts / "vocab.txt")
    else:
      vocab = _create_vocabulary(config.corpus, found, settings, seconds)
    vocabulary.save_vocabulary(directory / "vocab.txt", vocab)
  with _timed(seconds, "writing tokens"):
    for encoded in _encoded_chunks(config.corpus, found, directory, writer):
      writer.append(encoded)
    manifest = writer.finish(_entries(config.corpus), _dropping(config.corpus))

  with _timed(seconds, "report"):
    opened = corpus_lib.open_written(directory, manifest)
    report = report_lib.create_report(config, opened)
    files.save_json(directory / "report.json", report)
  corpus_writer.commit(directory, manifest)
  parts_lib.remove(parts_lib.folder(directory))
  report_lib.print_report(report)
  megabytes = (manifest["num_text_bytes"] - done_before) / 1e6
  parts = ", ".join(f"{part} {took:.1f} s" for part, took in seconds.items())
  print(
    f"corpus: {megabytes:,.1f} MB of text in {sum(seconds.values()):,.1f} s on "
    f"{parallel.num_workers()} cores ({parts})"
  )


@contextlib.contextmanager
def _timed(seconds, part):
  """Stores in a dict how many seconds a part took."""
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


def _entries(corpus):
  """Returns what the manifest says of the entries of `corpus.source`."""
  return [
    {"spec": entry.spec, "language": entry.language}
    for entry in spec.parse_entries(corpus)
  ]


def _dropping(corpus):
  """Returns what `CorpusWriter.finish` asks which documents to leave out."""
  drops = corpus.near_duplicates == "drop"
  return duplicates.drop_near_duplicates if drops else None


def _word_rules(corpus):
  return WordRules(
    lowercase=corpus.lowercase,
    strip_accents=corpus.strip_accents,
    split_long_words=corpus.split_long_words,
  )


def _encoding_rules(corpus):
  return encoding.EncodingRules(
    words=_word_rules(corpus),
    one_sentence_per_line=corpus.one_sentence_per_line,
    skip_bad_rows=corpus.skip_bad_rows,
  )


def _encoded_chunks(corpus, found, directory, writer):
  """Yields the chunks that are not written yet, encoded."""
  parts = parts_lib.folder(directory)
  if parts.exists():
    chunks = parts_lib.read_chunks(parts, len(found))
    encoded_chunks = itertools.islice(chunks, writer.num_chunks, None)
  else:
    rules = _encoding_rules(corpus)
    encode = functools.partial(encoding.encode, directory / "vocab.txt", rules)
    chunks = iterate_chunks(found, "writing tokens", name_empty=True)
    chunks = itertools.islice(chunks, writer.num_chunks, None)
    encoded_chunks = map_chunks(encode, chunks, text_bytes(found))
  num_named = 0
  for encoded in encoded_chunks:
    for problem in encoded.problems[: _NAMED_PROBLEMS - num_named]:
      print(f"corpus: skipped: {problem}")
      num_named += 1
    yield encoded


def _count_words(corpus, found):
  """Counts normalised words over the corpus, evenly spread."""
  found = sample_files(found, text_bytes(found) // VOCABULARY_BYTES)
  stride = 1 + text_bytes(found) // VOCABULARY_BYTES
  chunks = iterate_chunks(found, "counting words")
  chunks = itertools.islice(chunks, 0, None, stride)
  counts = collections.Counter()
  num_bytes = text_bytes(found) // stride
  count = functools.partial(encoding.count_words, corpus.skip_bad_rows)
  for chunk in map_chunks(count, chunks, num_bytes):
    counts.update(chunk)
    if len(counts) > _PRUNED_WORDS:
      counts = collections.Counter({w: n for w, n in counts.items() if n > 1})
  words = vocabulary.normalize_counts(counts, _word_rules(corpus))
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
  if len(vocab) < vocab_size:
    print(
      f"vocabulary: the text yields {len(vocab):,} pieces, fewer than "
      f"corpus.vocab_size = {vocab_size:,}; the vocabulary has so many"
    )
  return vocab
