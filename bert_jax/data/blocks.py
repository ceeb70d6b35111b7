"""Text in blocks: cut by the one process that reads, opened by many.

A file is cut at the ends of its documents, for which nothing needs to be
decoded; so reading goes as fast as gunzip, and all else is done wherever a
block's documents are wanted.
"""

import codecs
import dataclasses
import gzip
import json
import zlib

from bert_jax.errors import UserError

# A document is held whole; past this, blank lines are surely missing.
MAX_DOCUMENT_BYTES = 256 * 2**20
# Around a line. The first line of a file may start with a byte-order mark.
_SPACE = "\ufeff \t\r\n"
_BLANK = b" \t\r\n"
_NEWLINE = b"\n"


@dataclasses.dataclass(frozen=True)
class ReadBlock:
  """A document that is read already.

  Attributes:
    text: str.
  """

  text: str

  @property
  def num_bytes(self):
    """int, about its size as text."""
    return len(self.text)

  def documents(self):
    """Returns the document in a list."""
    return [self.text]


@dataclasses.dataclass(frozen=True)
class FileBlock:
  """Whole documents of a file, as they stand there.

  Attributes:
    path: str.
    data: bytes, whole lines.
    position: int, bytes of the (unpacked) file before it.
    line: int, number of its first line.
    text_key: the text's key in JSON lines; None in plain text.
  """

  path: str
  data: bytes
  position: int
  line: int
  text_key: str | None

  @property
  def num_bytes(self):
    """int, its size as text."""
    return len(self.data)

  def documents(self):
    """Returns its documents, a list of str, one paragraph a line.

    Raises:
      UserError: bytes that are not UTF-8, or a line that is no such record.
    """
    try:
      lines = self.data.decode("utf-8").split("\n")
    except UnicodeDecodeError as e:
      line = self.line + self.data.count(_NEWLINE, 0, e.start)
      raise UserError(
        f"{self.path} is not UTF-8: byte {self.data[e.start]:#04x} at position "
        f"{self.position + e.start} (line {line}); convert it with iconv"
      ) from None
    if self.text_key is None:
      return _split_documents(lines)
    found = (
      tidy(self._text(line.strip(_SPACE), number))
      for number, line in enumerate(lines, start=self.line)
    )
    return [document for document in found if document]

  def _text(self, line, number):
    """Returns the text of a JSON line."""
    if not line:
      return ""
    where = f"{self.path} line {number}"
    try:
      record = json.loads(line)
    except ValueError as e:
      raise UserError(f"{where} is not JSON: {e}") from None
    if not isinstance(record, dict):
      raise UserError(
        f"{where} is a JSON {type(record).__name__}; expected an object with "
        f"text under {self.text_key!r}"
      )
    text = record.get(self.text_key)
    if not isinstance(text, str):
      raise UserError(
        f"{where} has no text under {self.text_key!r} (it has: "
        f"{', '.join(map(repr, record))}); set --config.corpus.text_key"
      )
    return text


def _split_documents(lines):
  """Returns documents: runs of lines between blank ones."""
  documents, paragraphs = [], []
  for line in (*lines, ""):
    if text := line.strip(_SPACE):
      paragraphs.append(text)
    elif paragraphs:
      documents.append("\n".join(paragraphs))
      paragraphs = []
  return documents


def tidy(text):
  """Strips every line of a str and drops the empty ones."""
  # JSON can spell half a character ("\ud83d"), which has no UTF-8.
  text = text.encode("utf-8", "replace").decode("utf-8")
  lines = (line.strip() for line in text.splitlines())
  return "\n".join(line for line in lines if line)


def read_blocks(path, text_key, num_bytes):
  """Cuts a file into blocks.

  Args:
    path: str; it ends in ".gz" where the file is packed.
    text_key: the text's key in JSON lines; None for plain text.
    num_bytes: about the size of a block; a larger document makes a larger one.

  Yields:
    (`FileBlock` that is not blank, stored bytes read so far).

  Raises:
    UserError: a broken gzip file, or a document past `MAX_DOCUMENT_BYTES`.
  """
  data, position, line = bytearray(), 0, 1
  for piece, done in _read_lines(path, num_bytes):
    data += piece
    whole = text_key is not None or not piece
    cut = len(data) if whole else _end_of_documents(data, len(piece))
    if cut:
      block = FileBlock(path, bytes(data[:cut]), position, line, text_key)
      if block.data.strip(_BLANK) not in (b"", codecs.BOM_UTF8):
        yield block, done
      position, line = position + cut, line + data.count(_NEWLINE, 0, cut)
      del data[:cut]
    elif len(data) > MAX_DOCUMENT_BYTES:
      line += data.count(_NEWLINE)
      raise UserError(
        f"{path} has a document of over {MAX_DOCUMENT_BYTES >> 20} MiB at line "
        f"{line}; expected a blank line between documents"
      )


def _read_lines(path, num_bytes):
  """Yields (whole lines, stored bytes read so far); at the end (b"", ...)."""
  with open(path, "rb") as raw:
    lines = gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw
    try:
      piece = True
      while piece:
        piece = lines.read(num_bytes) + lines.readline(MAX_DOCUMENT_BYTES)
        yield piece, raw.tell()
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
      raise UserError(f"{path} is not a whole gzip file: {e}") from None


def _end_of_documents(data, num_new):
  """Returns where the last blank line among the new bytes ends, or 0."""
  end, begin = len(data), len(data) - num_new
  while end > begin:
    start = data.rfind(_NEWLINE, begin, end - 1) + 1 or begin
    if not data[start:end].strip(_BLANK):
      return end
    end = start
  return 0


def apply(function, blocks):
  """Returns what a function makes of the documents of some blocks."""
  return function([text for block in blocks for text in block.documents()])
