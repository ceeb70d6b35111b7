"""Raw text to vocabulary and token shards, with a report on the corpus.

    python -m bert_jax.prepare --config=configs/bert_base.py --workdir=W \\
      --config.corpus.source='texts/*.txt.gz'

Reads the text twice, in chunks, on all cores: once to count words for the
vocabulary (skipped with a given `corpus.vocab_file`), once to write token ids.
Memory does not grow with the corpus. Killed at any moment and started again,
it goes on with the chunk it was at and ends in the same bytes.
"""

import collections
import concurrent.futures
import contextlib
import functools
import hashlib
import itertools
import multiprocessing
import os
import threading
import time

import numpy as np
import tqdm
from etils import epath

from bert_jax import command, continuation, corpus_cache
from bert_jax import workdir as workdir_lib
from bert_jax.config import validate
from bert_jax.data import corpus as corpus_lib
from bert_jax.data import encoding, sources, vocabulary
from bert_jax.data.examples import Examples
from bert_jax.errors import UserError
from bert_jax.hosts import Hosts

# Text handed to a worker at once; also what a killed run may lose.
CHUNK_BYTES = 2**20
# Text that the vocabulary's words are counted on, spread over the corpus.
VOCABULARY_BYTES = 2**28
# Corpora smaller than this are done before workers would have started.
_POOL_BYTES = 24 * 2**20
_PRUNED_WORDS = 4_000_000
_COUNTED_TOKENS = 2**24  # at once
_REPORT_EXAMPLES = 20_000


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
  target = epath.Path(workdir) / "vocab.txt"
  target.parent.mkdir(parents=True, exist_ok=True)
  target.write_bytes((directory / "vocab.txt").read_bytes())
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
  started = time.monotonic()
  with contextlib.closing(
    corpus_lib.CorpusWriter(directory, settings)
  ) as writer:
    done_before = writer.num_text_bytes
    if writer.num_chunks:
      done = f"{writer.num_chunks:,} chunks"
      print(f"corpus: continuing in {directory} after {done}")
    else:
      vocab = _create_vocabulary(config.corpus, found, settings)
      vocabulary.save_vocabulary(directory / "vocab.txt", vocab)
    counted = time.monotonic()
    for encoded in _encoded_chunks(config.corpus, found, directory, writer):
      writer.append(encoded)
    manifest = writer.finish()
  written = time.monotonic()

  opened = corpus_lib.open_written(directory, manifest)
  report = corpus_report(config, opened)
  corpus_lib.write_json(directory / "report.json", report)
  corpus_lib.commit(directory, manifest)
  print_report(report)
  megabytes = (manifest["num_text_bytes"] - done_before) / 1e6
  print(
    f"corpus: {megabytes:,.1f} MB of text in {written - started:,.1f} s "
    f"(vocabulary {counted - started:,.1f} s, tokens {written - counted:,.1f} "
    f"s) on {_num_workers()} cores; report {time.monotonic() - written:,.1f} s"
  )


def _create_vocabulary(corpus, found, settings):
  """Reads the vocabulary given, with pieces of the text, or trains one."""
  if not corpus.vocab_file:
    return _train_vocabulary(corpus, found)
  vocab = vocabulary.load_vocabulary(corpus.vocab_file)
  if "extend_vocab" not in settings:
    return vocab
  words = _count_words(corpus, found)
  return vocabulary.extend_vocabulary(vocab, words, settings["extend_vocab"])


def _encoded_chunks(corpus, found, directory, writer):
  """Yields the chunks that are not in yet, encoded."""
  encode = functools.partial(
    _encode,
    directory / "vocab.txt",
    corpus.lowercase,
    corpus.language,
    corpus.one_sentence_per_line,
  )
  chunks = _chunks(found, "writing tokens", name_empty=True)
  chunks = itertools.islice(chunks, writer.num_chunks, None)
  yield from _ordered_map(encode, chunks, _text_bytes(found))


def _count_words(corpus, found):
  """Counts normalised words over the corpus, evenly spread."""
  stride = 1 + _text_bytes(found) // VOCABULARY_BYTES
  chunks = itertools.islice(_chunks(found, "counting words"), 0, None, stride)
  counts = collections.Counter()
  for chunk in _ordered_map(
    vocabulary.count_words, chunks, _text_bytes(found) // stride
  ):
    counts.update(chunk)
    if len(counts) > _PRUNED_WORDS:
      counts = collections.Counter({w: n for w, n in counts.items() if n > 1})
  words = vocabulary.normalize_counts(counts, corpus.lowercase)
  if not words:
    names = ", ".join(s.name for s in found[:3])
    raise UserError(f"there is no text in {names}; expected documents")
  return words


def _train_vocabulary(corpus, found):
  words = _count_words(corpus, found)
  vocab, left_out = vocabulary.train_vocabulary(words, corpus.vocab_size)
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
  """Yields lists of documents of about `CHUNK_BYTES`, with a progress bar."""
  chunk, size = [], 0
  total = _stored_bytes(found)
  bar = tqdm.tqdm(
    desc=label, total=total, unit="B", unit_scale=True, disable=None
  )
  with bar:
    before = 0
    for source in found:
      documents = 0
      for document, done in source.read():
        documents += 1
        chunk.append(document)
        size += len(document)
        if size >= CHUNK_BYTES:
          bar.update(before + done - bar.n)
          yield chunk
          chunk, size = [], 0
      if name_empty and not documents:
        print(f"corpus: {source.name} holds no text; skipped")
      before += source.num_bytes
    if chunk:
      yield chunk
    bar.update(total - bar.n)


def _ordered_map(function, chunks, text_bytes):
  """Maps chunks on all cores, results in order, few chunks in memory."""
  workers = _num_workers()
  if text_bytes < _POOL_BYTES or workers == 1:
    yield from map(function, chunks)
    return
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(
    workers, context, initializer=_end_with_parent
  ) as pool:
    waiting = collections.deque()
    for chunk in chunks:
      waiting.append(pool.submit(function, chunk))
      if len(waiting) > 3 * workers:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()


def _end_with_parent():
  """Ends a worker when the process that feeds it is killed."""
  parent = multiprocessing.parent_process()

  def wait():
    parent.join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def _num_workers():
  return len(os.sched_getaffinity(0))


def _encode(vocab_path, lowercase, language, one_per_line, documents):
  """Encodes one chunk in a worker, which keeps its encoder."""
  encoder = _create_encoder(vocab_path, lowercase, language, one_per_line)
  return encoder.encode(documents)


@functools.lru_cache(maxsize=1)
def _create_encoder(vocab_path, lowercase, language, one_per_line):
  vocab = vocabulary.load_vocabulary(vocab_path)
  return encoding.Encoder(vocab, lowercase, language, one_per_line)


def corpus_report(config, corpus):
  """Measures a corpus for the settings it will be trained with.

  Args:
    config: validated settings.
    corpus: `Corpus`.

  Returns:
    JSON-able dict; rates are shares of 1.

  Raises:
    UserError: too few documents, or a batch larger than a pass.
  """
  manifest = corpus.manifest
  counts = _token_counts(corpus)
  continues = np.array([t.startswith("##") for t in corpus.vocab])
  num_words = int(counts[~continues].sum())
  report = {
    "num_documents": manifest["num_documents"],
    "num_duplicate_documents": manifest["num_duplicate_documents"],
    "num_short_documents": manifest["num_short_documents"],
    "num_text_bytes": manifest["num_text_bytes"],
    "num_sentences": manifest["num_sentences"],
    "num_words": num_words,
    "num_tokens": manifest["num_tokens"],
    "vocab_size": len(corpus.vocab),
    "tokens_per_word": int(counts.sum()) / max(num_words, 1),
    "unknown_rate": int(counts[corpus.vocab.index("[UNK]")])
    / max(int(counts.sum()), 1),
  }
  training, held_out = corpus_lib.split_documents(
    corpus.documents, config.corpus.eval_fraction
  )
  report["num_held_out_documents"] = len(held_out)
  for number, name in enumerate(("phase1", "phase2"), start=1):
    phase = config[name]
    if phase.num_steps:
      report[name] = _phase_report(config, corpus, training, phase, number)
  return report


def _token_counts(corpus):
  """Returns how often each id occurs in kept documents, int64 [vocabulary]."""
  starts = corpus.documents["start"]
  ends = starts + corpus.documents["num_tokens"]
  # Documents that follow each other without a dropped one make one run.
  breaks = np.flatnonzero(starts[1:] != ends[:-1])
  runs = zip(
    np.concatenate([starts[:1], starts[1:][breaks]]),
    np.concatenate([ends[:-1][breaks], ends[-1:]]),
    strict=True,
  )
  counts = np.zeros(len(corpus.vocab), np.int64)
  for run_start, run_end in runs:
    for start in range(run_start, run_end, _COUNTED_TOKENS):
      tokens = corpus.tokens[start : min(start + _COUNTED_TOKENS, run_end)]
      counts += np.bincount(tokens, minlength=len(counts))
  return counts


def _phase_report(config, corpus, documents, phase, number):
  examples = Examples(
    corpus, documents, phase.max_seq_length, config.seed, number
  )
  if examples.examples_per_pass < phase.batch_size:
    raise UserError(
      f"phase{number}.batch_size is {phase.batch_size}, but the text gives only"
      f" {examples.examples_per_pass} examples of length "
      f"{phase.max_seq_length}; expected at most that, or more text"
    )
  pairs = examples.pairs(np.arange(_REPORT_EXAMPLES))
  lengths = (pairs.a_length + pairs.b_length + 3)[~pairs.is_short]
  return {
    "max_seq_length": phase.max_seq_length,
    "examples_per_pass": examples.examples_per_pass,
    "predicted_passes": phase.num_steps
    * phase.batch_size
    / examples.examples_per_pass,
    "not_next_rate": float(pairs.is_random.mean()),
    "fill": float(lengths.mean() / phase.max_seq_length),
  }


def print_report(report):
  """Prints a `corpus_report` for people."""
  print(
    f"corpus: {report['num_documents']:,} documents "
    f"({report['num_held_out_documents']:,} held out; "
    f"{report['num_duplicate_documents']:,} duplicates and "
    f"{report['num_short_documents']:,} too short dropped), "
    f"{report['num_sentences']:,} sentences, {report['num_words']:,} words, "
    f"{report['num_tokens']:,} tokens"
  )
  print(
    f"corpus: vocabulary of {report['vocab_size']:,}, "
    f"{report['tokens_per_word']:.4f} tokens per word, "
    f"{report['unknown_rate']:.4%} unknown"
  )
  for name in ("phase1", "phase2"):
    if name in report:
      phase = report[name]
      print(
        f"corpus: {name} at length {phase['max_seq_length']}: "
        f"{phase['examples_per_pass']:,} examples a pass, "
        f"{phase['predicted_passes']:,.1f} passes, "
        f"{phase['not_next_rate']:.4f} NotNext, fill {phase['fill']:.4f}"
      )


def main(argv):
  """Runs the command."""
  del argv
  config, workdir = command.config_and_workdir()
  init = continuation.init_from_flags()
  with workdir_lib.run_lock(epath.Path(workdir)):
    config, init = continuation.begin(
      config, epath.Path(workdir), init, Hosts()
    )
    validate(config)
    prepare(config, workdir, init.extend_vocab if init else 0)


if __name__ == "__main__":
  command.define_config_flags()
  continuation.define_flags()
  command.run(main)
