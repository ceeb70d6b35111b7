"""Files in blocks of whole documents, so that workers can decode them.

One process reads a file and cuts it between documents, which needs no decoding:
as fast as gunzip. Workers turn the bytes of a block into documents.
"""

import codecs
import dataclasses
import re

from bert_jax.data.json_text import parse_object
from bert_jax.data.sources import compression
from bert_jax.data.sources.source import Layout
from bert_jax.errors import UserError

# A document is held whole; past this, blank lines are surely missing.
MAX_DOCUMENT_BYTES = 256 * 2**20
# Around a line. The first line of a file may start with a byte-order mark.
_SPACE = "\ufeff \t\r\n"
_BLANK = b" \t\r\n"
_NEWLINE = b"\n"
_BLANK_LINES = re.compile(r"\n(?:[ \t\r\f\v]*\n)+")
# WikiExtractor's markup: a tag, the title, the text.
_WIKI_DOCUMENT = re.compile(r"<doc\b[^>]*>\n[^\n]*\n(.*?)</doc>", re.DOTALL)
_WIKI_END = b"</doc>"
# Bytes of a file that tell its kind.
_PEEK_BYTES = 2**16


@dataclasses.dataclass(frozen=True)
class ReadBlock:
  """Documents that the reading process has decoded already.

  Attributes:
    texts: list of str.
    problems: list of str, one line for each record without text.
    layout: `Layout`.
  """

  texts: list
  problems: list = dataclasses.field(default_factory=list)
  layout: Layout = dataclasses.field(default_factory=Layout)

  @property
  def num_bytes(self):
    """int, about its size as text."""
    return sum(map(len, self.texts))

  def documents(self, problems=None):
    """Returns the documents; see `FileBlock.documents`."""
    if self.problems and problems is None:
      raise UserError(self.problems[0])
    if problems is not None:
      problems += self.problems
    found = (tidy(text, self.layout.join_lines) for text in self.texts)
    return [document for document in found if document]


@dataclasses.dataclass(frozen=True)
class FileBlock:
  """The undecoded bytes of whole documents of a file.

  Attributes:
    path: str.
    data: bytes, whole lines.
    position: int, bytes of the (unpacked) file before it.
    line: int, number of its first line.
    kind: "text", "json" (a record a line) or "wiki" (WikiExtractor's markup).
    layout: `Layout`.
  """

  path: str
  data: bytes
  position: int
  line: int
  kind: str
  layout: Layout

  @property
  def num_bytes(self):
    """int, its size as text."""
    return len(self.data)

  def documents(self, problems=None):
    """Returns its documents, a list of str, one paragraph a line.

    Args:
      problems: list that gets a line for each row that can't be read, which
        is skipped; None raises at the first one.

    Raises:
      UserError: bytes that are not UTF-8, or a line that is no such record.
    """
    lines = self._decode(problems)
    if self.kind == "json":
      found = self._records(lines, problems)
    elif self.kind == "wiki":
      found = _WIKI_DOCUMENT.findall("\n".join(filter(_is_read, lines)))
    elif self.layout.file_is_document:
      found = ["\n".join(filter(_is_read, lines))]
    else:
      return _split_documents(filter(_is_read, lines), self.layout.join_lines)
    found = [tidy(text, self.layout.join_lines) for text in found]
    return [document for document in found if document]

  def _decode(self, problems):
    """Returns the lines; None for one that is not UTF-8."""
    try:
      return self.data.decode("utf-8").split("\n")
    except UnicodeDecodeError as e:
      if problems is None:
        raise UserError(self._not_utf8(e, 0)) from None
    lines, start = [], 0
    for line in self.data.split(_NEWLINE):
      try:
        lines.append(line.decode("utf-8"))
      except UnicodeDecodeError as e:
        problems.append(self._not_utf8(e, start))
        lines.append(None)
      start += len(line) + 1
    return lines

  def _not_utf8(self, error, offset):
    start = offset + error.start
    line = self.line + self.data.count(_NEWLINE, 0, start)
    return (
      f"{self.path} is not UTF-8: byte {self.data[start]:#04x} at position "
      f"{self.position + start} (line {line}); convert it with iconv or set "
      "--config.corpus.skip_bad_rows=True"
    )

  def _records(self, lines, problems):
    """Yields the texts of JSON lines."""
    for number, line in enumerate(lines, start=self.line):
      line = line and line.strip(_SPACE)
      if not line:
        continue
      where = f"{self.path} line {number}"
      try:
        record = parse_object(line, where)
        yield record_text(record, self.layout.text_key, where)
      except UserError as e:
        if problems is None:
          raise
        problems.append(str(e))


def _is_read(line):
  return line is not None


def record_text(record, text_key, where):
  """Returns the text of a record.

  Args:
    record: what a JSON text, a row of a table or an example holds.
    text_key: see `Layout`.
    where: what to call the record in messages.

  Returns:
    str; a list of texts is joined, one a paragraph.

  Raises:
    UserError: it has no text there.
  """
  if not isinstance(record, dict):
    raise UserError(
      f"{where} is a JSON {type(record).__name__}; expected an object with "
      f"text under {text_key!r}"
    )
  text = find_text(record, text_key)
  if text is None:
    raise UserError(
      f"{where} has no text under {text_key!r} (it has: "
      f"{', '.join(map(repr, record))}); set --config.corpus.text_key, or "
      "--config.corpus.skip_bad_rows=True"
    )
  return text


def find_text(value, key):
  """Returns the text under a key such as "article/paragraphs", or None.

  Args:
    value: dicts, lists and str, nested; a list stands for each of its items.
    key: str; "" is the value itself.
  """
  if isinstance(value, list | tuple):
    found = [find_text(item, key) for item in value]
    return None if None in found else "\n".join(found)
  if isinstance(value, dict) and key:
    if key in value:
      return find_text(value[key], "")
    head, _, rest = key.partition("/")
    return find_text(value.get(head), rest)
  if isinstance(value, bytes):
    value = value.decode("utf-8")
  return value if isinstance(value, str) and not key else None


def _split_documents(lines, join_lines):
  """Returns documents: runs of lines between blank ones."""
  documents, paragraphs = [], []
  separator = " " if join_lines else "\n"
  for line in (*lines, ""):
    if text := line.strip(_SPACE):
      paragraphs.append(text)
    elif paragraphs:
      documents.append(separator.join(paragraphs))
      paragraphs = []
  return documents


def tidy(text, join_lines=False):
  """Strips every line of a str and drops the empty ones.

  Args:
    text: str.
    join_lines: whether to join the lines between blank ones into one.
  """
  # JSON can spell half a character ("\ud83d"), which has no UTF-8.
  text = text.encode("utf-8", "replace").decode("utf-8")
  if join_lines:
    text = "\n".join(" ".join(p.split()) for p in _BLANK_LINES.split(text))
  lines = (line.strip() for line in text.splitlines())
  return "\n".join(line for line in lines if line)


def read_blocks(path, kind, layout, num_bytes):
  """Cuts a file into blocks.

  Args:
    path: str; its ending tells how the file is packed.
    kind: see `FileBlock`; "text" with WikiExtractor's markup is "wiki", and
      None looks which of the three it is.
    layout: `Layout`.
    num_bytes: about the size of a block; a larger document makes a larger one.

  Yields:
    (`FileBlock` that is not blank, stored bytes read so far).

  Raises:
    UserError: a broken packed file, or a document past `MAX_DOCUMENT_BYTES`.
  """
  data, position, line = bytearray(), 0, 1
  for piece, done in _read_lines(path, num_bytes):
    if position == 0 and not data:
      kind = _recognise(piece, kind)
    data += piece
    cut = _end_of_documents(data, len(piece), kind, layout)
    if cut:
      block = FileBlock(path, bytes(data[:cut]), position, line, kind, layout)
      if block.data.strip(_BLANK) not in (b"", codecs.BOM_UTF8):
        yield block, done
      position, line = position + cut, line + data.count(_NEWLINE, 0, cut)
      del data[:cut]
    elif len(data) > MAX_DOCUMENT_BYTES:
      raise UserError(
        f"{path} has a document of over {MAX_DOCUMENT_BYTES >> 20} MiB before "
        f"line {line + data.count(_NEWLINE)}; expected a blank line between "
        "documents"
      )


def _recognise(data, kind):
  """Returns the kind of a file that begins with `data`."""
  start = data[:_PEEK_BYTES].removeprefix(codecs.BOM_UTF8).lstrip()
  if kind in ("text", None) and start.startswith((b"<doc ", b"<doc>")):
    return "wiki"
  if kind is None:
    return "json" if start.startswith(b"{") else "text"
  return kind


def _read_lines(path, num_bytes):
  """Yields (whole lines, stored bytes read so far); at the end (b"", ...)."""
  num_lines = 0
  with compression.open_unpacked(path) as (lines, raw):
    piece = True
    while piece:
      piece = lines.read(num_bytes)
      rest = lines.readline(MAX_DOCUMENT_BYTES)
      num_lines += piece.count(_NEWLINE)
      if len(rest) >= MAX_DOCUMENT_BYTES and not rest.endswith(_NEWLINE):
        raise UserError(
          f"{path} line {num_lines + 1} has over {MAX_DOCUMENT_BYTES >> 20} "
          "MiB; expected shorter lines (a document is held in memory whole)"
        )
      num_lines += rest.count(_NEWLINE)
      piece += rest
      yield piece, raw.tell()


def _end_of_documents(data, num_new, kind, layout):
  """Returns where the last whole document ends among the new bytes, or 0."""
  if not num_new:  # the end of the file
    return len(data)
  if kind == "json":
    return len(data)
  if kind == "text" and layout.file_is_document:
    return 0
  ending = _WIKI_END if kind == "wiki" else b""
  end, begin = len(data), len(data) - num_new
  while end > begin:
    start = data.rfind(_NEWLINE, begin, end - 1) + 1 or begin
    if data[start:end].strip(_BLANK) == ending:
      return end
    end = start
  return 0
