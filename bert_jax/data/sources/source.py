"""What every kind of source looks like to the rest."""

import collections.abc
import dataclasses


@dataclasses.dataclass(frozen=True)
class Layout:
  """How documents are laid out in the files of a source.

  Attributes:
    text_key: key of the text in JSON records, columns of tables and features
      of data sets; "a/b" is key "b" of the value of "a".
    join_lines: if True, line breaks are spaces and blank lines part paragraphs
      (text wrapped at a column); otherwise each line is a paragraph.
    file_is_document: if True, a text file is one document; otherwise blank
      lines part its documents.
  """

  text_key: str = "text"
  join_lines: bool = False
  file_is_document: bool = False


@dataclasses.dataclass(frozen=True)
class Source:
  """One stream of blocks of documents: a file, or a split of a data set.

  Attributes:
    name: what to call it in messages.
    num_bytes: its size as stored, for progress.
    text_bytes: its size as text; an estimate where it is compressed.
    blocks: takes the size of a block in bytes, where one can be chosen;
      returns an iterator of (block, stored bytes read so far). See `blocks.py`.
    group: number of the entry of `corpus.source` that it comes from.
    language: ISO 639 code for the sentence splitter.
  """

  name: str
  num_bytes: int
  text_bytes: int
  blocks: collections.abc.Callable
  group: int = 0
  language: str = "en"


@dataclasses.dataclass(frozen=True)
class SourcePiece:
  """A block, and what encoding it takes besides.

  Attributes:
    block: `FileBlock` or `ReadBlock`.
    source: int, number of the entry of `corpus.source` that it comes from.
    language: ISO 639 code for the sentence splitter.
  """

  block: object
  source: int
  language: str
