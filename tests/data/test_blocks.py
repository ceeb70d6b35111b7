"""Files cut into blocks: wherever the cuts fall, nothing is lost."""

import itertools
import pathlib
import tempfile

import hypothesis
from hypothesis import strategies as st

from bert_jax.data.sources.blocks import read_blocks
from bert_jax.data.sources.source import Layout

# What blank lines are made of, and letters of one to four bytes.
LINES = st.lists(
  st.text("a \t\r\u00e9\u4e2d\U0001f600", max_size=6), max_size=40
)
SPACE = " \t\r"


@hypothesis.given(LINES, st.integers(1, 64))
def test_a_text_cut_anywhere_has_the_same_documents(lines, num_bytes):
  """Runs of lines between blank ones, each within one block."""
  groups = itertools.groupby(lines, key=lambda line: bool(line.strip(SPACE)))
  expected = [
    "\n".join(line.strip(SPACE) for line in group)
    for is_text, group in groups
    if is_text
  ]
  data = "\n".join(lines).encode()
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "a.txt"
    path.write_bytes(data)
    blocks = [
      block for block, _ in read_blocks(str(path), "text", Layout(), num_bytes)
    ]
  documents = [block.documents() for block in blocks]
  assert list(itertools.chain(*documents)) == expected
  end = 0
  for block in blocks:
    assert not data[end : block.position].strip()  # blank blocks are left out
    end = block.position + len(block.data)
    assert data[block.position : end] == block.data
    assert block.line == 1 + data[: block.position].count(b"\n")
  assert not data[end:].strip()
