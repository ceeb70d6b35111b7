"""JSON files that are no JSON lines: an array, or values one after another."""

import codecs
import json

from bert_jax.data.sources import compression
from bert_jax.data.sources.blocks import (
  MAX_DOCUMENT_BYTES,
  ReadBlock,
  read_blocks,
  record_text,
)
from bert_jax.errors import UserError

_PIECE_BYTES = 2**16
_BETWEEN = " \t\r\n,]"


def read_json(path, layout, num_bytes):
  """Cuts a .json file into blocks.

  Args:
    path: str; its ending tells how the file is packed.
    layout: `Layout`.
    num_bytes: about the size of a block of text.

  Yields:
    (block, stored bytes read so far).

  Raises:
    UserError: the file is no JSON, or a value has over `MAX_DOCUMENT_BYTES`.
  """
  if _is_lines(path):
    yield from read_blocks(path, "json", layout, num_bytes)
    return
  texts, problems, size = [], [], 0
  for number, (value, done) in enumerate(_iterate_values(path), start=1):
    try:
      texts.append(record_text(value, layout.text_key, f"{path} item {number}"))
      size += len(texts[-1])
    except UserError as e:
      problems.append(str(e))
    if size >= num_bytes:
      yield ReadBlock(texts, problems, layout), done
      texts, problems, size = [], [], 0
  if texts or problems:
    yield ReadBlock(texts, problems, layout), done


def _is_lines(path):
  """Returns whether the first line of a file is a JSON object, whole."""
  with compression.open_unpacked(path) as (file, _):
    line = file.readline(MAX_DOCUMENT_BYTES).removeprefix(codecs.BOM_UTF8)
  try:
    return isinstance(json.loads(line), dict)
  except (ValueError, RecursionError):
    return False


def _iterate_values(path):
  """Yields (value, stored bytes read so far) of a JSON array or sequence."""
  decoder = json.JSONDecoder()
  decode = codecs.getincrementaldecoder("utf-8-sig")().decode
  with compression.open_unpacked(path) as (file, raw):
    text, at, number, begun, is_end = "", 0, 0, False, False
    while True:
      at = _skip(text, at, _BETWEEN)
      if not begun and at < len(text):
        begun = True
        at += text[at] == "["
        at = _skip(text, at, _BETWEEN)
      try:
        value, at = decoder.raw_decode(text, at)
        number += 1
        yield value, raw.tell()
        continue
      except RecursionError as e:
        raise UserError(f"{path} item {number + 1}: {e}") from None
      except ValueError as e:
        if is_end and at == len(text):
          return
        if is_end or len(text) - at > MAX_DOCUMENT_BYTES:
          raise UserError(
            f"{path} item {number + 1} is not JSON: {e}; expected an array of "
            "objects, or an object a line"
          ) from None
      # A value that goes on: twice as much at a time, so that reading stays
      # linear in its length.
      size = max(_PIECE_BYTES, len(text) - at)
      data = file.read(size)
      is_end = not data
      try:
        text, at = text[at:] + decode(data, is_end), 0
      except UnicodeDecodeError as e:
        raise UserError(
          f"{path} is not UTF-8 after item {number}: {e}; convert it with iconv"
        ) from None


def _skip(text, at, characters):
  while at < len(text) and text[at] in characters:
    at += 1
  return at
