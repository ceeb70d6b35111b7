"""Every common file holds the same documents; odd names and bad rows too."""

import bz2
import gzip
import json
import lzma

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from bert_jax.config import default_config
from bert_jax.data.sources import blocks, json_values, spec
from bert_jax.errors import UserError

DOCUMENTS = [f"Document {i}, na\u00efve.\nA second line." for i in range(300)]
RECORDS = [{"id": 7, "text": d} for d in DOCUMENTS]
JSON = {
  "array": json.dumps(RECORDS),
  "indented": json.dumps(RECORDS, indent=2),
  "lines": "\n".join(map(json.dumps, RECORDS)),
  "objects": "\n".join(json.dumps(r, indent=1) for r in RECORDS),
}
TEXT = "\n\n".join(DOCUMENTS)
WIKI = "".join(
  f'<doc id="{i}" url="u?curid={i}" title="T & U">\nT & U\n\n{d}\n\n</doc>\n'
  for i, d in enumerate(DOCUMENTS)
)


def _corpus(source, **settings):
  corpus = default_config().corpus
  corpus.source = str(source)
  corpus.update(settings)
  return corpus


def _read(source, problems=None, **settings):
  return [
    document
    for found in spec.open_sources(_corpus(source, **settings))
    for block, _ in found.blocks(2000)
    for document in block.documents(problems)
  ]


def _refusal(source, **settings):
  with pytest.raises(UserError) as e:
    _read(source, **settings)
  assert "\n" not in str(e.value)
  return str(e.value)


def _zstd(data):
  packed = pyarrow.BufferOutputStream()
  with pyarrow.CompressedOutputStream(packed, "zstd") as stream:
    stream.write(data)
  return packed.getvalue().to_pybytes()


PACK = {
  "": bytes,
  ".gz": gzip.compress,
  ".bz2": bz2.compress,
  ".xz": lzma.compress,
  ".zst": _zstd,
}


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("a.txt", TEXT),
    ("a", TEXT),
    ("wiki_00", WIKI),
    ("wiki.txt", WIKI),
    ("wiki_01", JSON["lines"]),
    ("a.ndjson", JSON["lines"]),
    *(("a.json", content) for content in JSON.values()),
  ],
)
def test_every_format_holds_the_same_documents(
  tmp_path, packing, name, content
):
  path = tmp_path / f"{name}{packing}"
  path.write_bytes(PACK[packing](content.encode()))
  assert _read(path) == DOCUMENTS


@pytest.mark.parametrize("packing", [".bz2", ".xz", ".zst"])
@pytest.mark.parametrize(
  "breaking", [lambda b: b[: len(b) // 2], lambda b: b"not packed at all" * 9]
)
def test_a_broken_packed_file_is_named(tmp_path, packing, breaking):
  path = tmp_path / f"a.txt{packing}"
  text = "\n\n".join(f"document {n * n}" for n in range(5000))
  path.write_bytes(breaking(PACK[packing](text.encode())))
  assert f"{path} is not a whole " in _refusal(path)


@pytest.mark.parametrize("num_chars", [1, 7, 100, 2**16])
def test_json_arrays_are_read_in_pieces_of_any_size(
  tmp_path, monkeypatch, num_chars
):
  """Also where a piece ends amid a character, an escape or a number."""
  monkeypatch.setattr(json_values, "_PIECE_BYTES", num_chars)
  records = [
    {"n": 12345, "text": f'\u6f22\U0001f600 \\ " ] }} , {i}'} for i in range(40)
  ]
  path = tmp_path / "a.json"
  path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
  assert _read(path) == [record["text"] for record in records]


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ('[{"text": "a"}, {"text": "b"', "item 2 is not JSON"),
    ('[{"text": "a"}, nonsense]', "item 2 is not JSON"),
    ('[{"text": "a"}, 5]', "item 2 is a JSON int"),
    ('[{"text": "a"}, {"body": "b"}]', "item 2 has no text under 'text'"),
    ("[" * 100_000, "item 1"),
  ],
)
def test_a_bad_item_of_an_array_is_named(tmp_path, content, message):
  path = tmp_path / "a.json"
  path.write_text(content)
  assert f"{path} {message}" in _refusal(path)


def _write_parquet(path, rows):
  table = pyarrow.Table.from_pylist(rows)
  pyarrow.parquet.write_table(table, path, row_group_size=100)


def test_parquet_columns_and_fields_are_text(tmp_path):
  path = tmp_path / "a.parquet"
  _write_parquet(
    path, [r | {"page": {"lines": r["text"].split("\n")}} for r in RECORDS]
  )
  assert _read(path) == DOCUMENTS
  assert _read(path, text_key="page/lines") == DOCUMENTS
  (source,) = spec.open_sources(_corpus(path))
  done = [n for _, n in source.blocks(1)]
  assert done == sorted(done) and done[-1] == path.stat().st_size


def test_a_bad_parquet_file_is_named(tmp_path):
  path = tmp_path / "a.parquet"
  _write_parquet(path, [{"body": "a"}, {"body": None}])
  assert "no column 'text'; it has: body" in _refusal(path)
  assert f"{path} row 2 has no text" in _refusal(path, text_key="body")
  path.write_bytes(path.read_bytes()[:-20])
  assert f"{path} is not a whole Parquet file" in _refusal(path)


def test_hugging_face_data_sets_are_read_from_disk(tmp_path):
  saved = datasets.Dataset.from_list(RECORDS)
  saved.save_to_disk(str(tmp_path / "one"))
  both = datasets.DatasetDict({"train": saved, "test": saved.select(range(5))})
  both.save_to_disk(str(tmp_path / "both"))
  assert _read(f"hf:{tmp_path}/one") == DOCUMENTS
  assert _read(f"hf:{tmp_path}/both") == DOCUMENTS
  assert _read(f"hf:{tmp_path}/both:test") == DOCUMENTS[:5]
  assert "no column 'body'; it has: " in _refusal(
    f"hf:{tmp_path}/one", text_key="body"
  )


def test_a_hugging_face_data_set_that_can_not_be_had_is_one_line(tmp_path):
  assert "hf:nobody/nothing" in _refusal("hf:nobody/nothing")
  datasets.DatasetDict(
    {"train": datasets.Dataset.from_list(RECORDS)}
  ).save_to_disk(str(tmp_path / "a"))
  assert "validation" in _refusal(f"hf:{tmp_path}/a:validation")


@pytest.mark.parametrize(
  "name",
  ["a, b.txt", "a[1].txt", "a*2.txt", "b@de", "a*3", ",.txt", "a b?.txt"],
)
def test_a_file_of_any_name_is_taken_as_it_is(tmp_path, name):
  (tmp_path / name).write_text(TEXT)
  (tmp_path / "other.txt").write_text("Other.")
  found = _read(f"{tmp_path}/other.txt,{tmp_path}/{name}, {tmp_path}/other.txt")
  assert found == ["Other.", *DOCUMENTS, "Other."]


def test_entries_say_language_and_weight():
  entries = spec.parse_entries(
    _corpus(
      "a/*.txt*3,b*.json.gz@de*0.5,tfds:x/y:train[:50%]@fr , embedded",
      language="fi",
    )
  )
  assert [(e.spec, e.language, e.weight) for e in entries] == [
    ("a/*.txt", "fi", 3),
    ("b*.json.gz", "de", 0.5),
    ("tfds:x/y:train[:50%]", "fr", 1),
    ("embedded", "fi", 1),
  ]


def test_sources_know_their_entry_and_language(tmp_path):
  for name in ("a1", "a2", "b"):
    (tmp_path / f"{name}.txt").write_text(name)
  found = spec.open_sources(_corpus(f"{tmp_path}/a*.txt@de,{tmp_path}/b.txt"))
  assert [(s.group, s.language) for s in found] == [
    (0, "de"),
    (0, "de"),
    (1, "en"),
  ]


@pytest.mark.parametrize(
  ("source", "language", "words"),
  [
    ("embedded", "klingon", ["'klingon'", "de, ", "zh", "und"]),
    ("embedded@tlh", "en", ["'tlh'", "embedded", "expected an ISO 639 code"]),
    ("embedded*0", "en", ["weight 0", "more than 0"]),
  ],
)
def test_an_unknown_language_or_no_weight_is_refused(source, language, words):
  message = _refusal(source, language=language)
  for word in words:
    assert word in message


WRAPPED = (
  "CHAPTER I\n\nThe first line of a paragraph\ngoes on in the second,   and\n"
  "ends.\n \t\nAnother\none.\n\n\n\nThe last."
)
PARAGRAPHS = [
  "CHAPTER I",
  "The first line of a paragraph goes on in the second, and ends.",
  "Another one.",
  "The last.",
]


def test_wrapped_lines_are_joined_if_asked_for(tmp_path):
  """In a text file, with blank lines between documents or paragraphs."""
  path = tmp_path / "a.txt"
  path.write_text(WRAPPED)
  squeezed = [" ".join(p.split()) for p in _read(path, join_lines=True)]
  assert squeezed == PARAGRAPHS
  whole = _read(path, join_lines=True, file_is_document=True)
  assert whole == ["\n".join(PARAGRAPHS)]
  lines = [" ".join(x.split()) for x in WRAPPED.split("\n") if x.strip()]
  (document,) = _read(path, file_is_document=True)
  assert [" ".join(x.split()) for x in document.split("\n")] == lines


def test_wrapped_records_are_joined_if_asked_for(tmp_path):
  (tmp_path / "a.jsonl").write_text(json.dumps({"text": WRAPPED}))
  found = _read(tmp_path / "a.jsonl", join_lines=True)
  assert found == ["\n".join(PARAGRAPHS)]


BAD_ROWS = {
  "a.jsonl": b'{"text": "one"}\n{"text": null}\nnonsense\n{"text": "b\xff"}\n'
  b'{"text": "two"}\n',
  "a.txt": b"one\n\nbad \xff\nbad \xfe\n\nbad \xfd\n\ntwo\n",
  "a.json": b'[{"text": "one"}, {"text": null}, 5, {}, {"text": "two"}]',
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_named_or_skipped_and_counted(tmp_path, name):
  path = tmp_path / name
  path.write_bytes(BAD_ROWS[name])
  assert str(path) in _refusal(path)
  problems = []
  assert _read(path, problems) == ["one", "two"]
  assert len(problems) == 3
  assert all(str(path) in problem for problem in problems)


def test_a_line_past_all_bounds_is_called_long_and_not_broken(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(blocks, "MAX_DOCUMENT_BYTES", 2**20)
  path = tmp_path / "a.jsonl"
  path.write_text(
    '{"text": "short"}\n' + json.dumps({"text": "x" * 2**21}) + "\n"
  )
  message = _refusal(path)
  assert f"{path} line 2 has over 1 MiB" in message
  assert "not JSON" not in message


def test_globs_of_a_bucket_are_read(gcs):
  """By the client's own protocol, from a server on this machine."""
  for name, content in {
    "in/b.txt.gz": gzip.compress(b"from b"),
    "in/a.txt": b"from a",
    "in/deep/c.txt": b"from c",
  }.items():
    gcs.bucket.put({"name": name}, content)
  assert _read(f"{gcs.address}/in/*.txt*") == ["from a", "from b"]
  assert _read(f"{gcs.address}/in/deep/c.txt@de*2") == ["from c"]
  assert "matches no file" in _refusal(f"{gcs.address}/in/none.txt")
