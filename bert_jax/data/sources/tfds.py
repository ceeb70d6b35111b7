"""Data sets of the package `tensorflow_datasets`."""

import re

from bert_jax.data.sources.blocks import ReadBlock, record_text
from bert_jax.data.sources.source import Source
from bert_jax.errors import UserError

# Text features of the usual corpora, best first.
_TEXT_KEYS = ("text", "document", "article", "book_text", "content")
_BLOCK_CHARS = 2**18
_WIKI40B_PARAGRAPHS = re.compile(
  r"_START_PARAGRAPH_\n(.*?)(?=_START_(?:ARTICLE|SECTION|PARAGRAPH)_|\Z)",
  re.DOTALL,
)


def open_dataset(spec, layout):
  """Opens "tfds:NAME[/CONFIG][:SPLIT]".

  Args:
    spec: str.
    layout: `Layout`.

  Returns:
    `Source`.

  Raises:
    UserError: there is no such data set, split or feature.
  """
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
  key = _text_key(spec, builder.info.features, layout.text_key)
  # A part of a split does not know its bytes.
  whole = splits.values()
  share = num_examples / max(sum(s.num_examples for s in whole), 1)
  num_bytes = int(share * sum(s.num_bytes for s in whole))

  def blocks(num_bytes_wanted):
    del num_bytes_wanted
    return _iterate_blocks(builder, split, key, layout, num_bytes)

  return Source(spec, num_bytes, num_bytes, blocks)


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
      f"TFDS_DATA_DIR) and can't be made there: {_first_line(e)}{_advice(e)}"
    ) from None
  return builder


def _advice(error):
  """Returns what to install where a data set's code lacks a package."""
  missing = isinstance(error, ImportError) or "beam" in str(error).lower()
  return " (pip install 'bert_jax[wikipedia]')" if missing else ""


def _first_line(error):
  return (str(error).strip() or type(error).__name__).splitlines()[0]


def _text_key(spec, features, text_key):
  """Returns the feature that holds the text; its own name or a usual one."""
  for name in (text_key, *_TEXT_KEYS):
    if name.partition("/")[0] in features or name in features:
      return name
  raise UserError(
    f"corpus.source {spec!r} has no feature {text_key!r}; it has: "
    f"{', '.join(features)} (set --config.corpus.text_key)"
  )


def _iterate_blocks(builder, split, key, layout, num_bytes):
  """Yields blocks; the bytes read are a share of the split's."""
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
  name = f"{builder.info.full_name}:{split}"
  texts, problems, size = [], [], 0
  for number, record in enumerate(records, start=1):
    try:
      text = _text(record, key, f"{name} example {number}")
      texts.append(text)
      size += len(text)
    except UserError as e:
      problems.append(str(e))
    if size >= _BLOCK_CHARS or number == num_examples:
      block = ReadBlock(texts, problems, layout)
      yield block, num_bytes * number // num_examples
      texts, problems, size = [], [], 0


def _text(record, key, where):
  """Returns the text of an example."""
  try:
    text = record_text(_to_python(record), key, where)
  except UnicodeDecodeError as e:
    raise UserError(f"{where} is not UTF-8: {e}") from None
  if text.lstrip().startswith("_START_ARTICLE_"):
    return _wiki40b_text(text)
  return text


def _to_python(value):
  """Returns lists and dicts of str and numbers, from an example's arrays."""
  if isinstance(value, dict):
    return {key: _to_python(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_to_python(item) for item in value]
  # Sequences of text come as arrays, and ragged ones of several dimensions.
  if hasattr(value, "to_list"):
    return value.to_list()
  return value.tolist() if hasattr(value, "tolist") else value


def _wiki40b_text(text):
  """Keeps the paragraphs; titles and headings are no running text."""
  paragraphs = _WIKI40B_PARAGRAPHS.findall(text)
  return "\n".join(paragraphs).replace("_NEWLINE_", "\n")
