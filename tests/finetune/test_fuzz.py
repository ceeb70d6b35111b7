"""Whatever a file holds: every reader ends in rows or in one line."""

import gzip
import json
import os
import pathlib
import tempfile

import hypothesis
import numpy as np
import pytest
from etils import epath
from hypothesis import strategies as st

from bert_jax.data.rows import iterate_rows
from bert_jax.data.tokenization import create_tokenizer
from bert_jax.errors import UserError
from bert_jax.finetune.config import default_config
from bert_jax.finetune.tasks import KINDS
from tests.weights import tiny_bert

# No warning of a library reaches the user.
pytestmark = pytest.mark.filterwarnings("error")
TOKENIZER = create_tokenizer(tiny_bert.make_vocab(("the", "river")), True)
# Where files break: ends, quotes, digits, half characters, other numerals.
CHARACTERS = st.one_of(
  st.sampled_from('\t\n\r",:[]{}\\#-.0123456789 aO\u0662\u00b2\x00\u2028'),
  st.characters(exclude_categories=["Cs"]),
)
ODD = st.sampled_from(
  [
    *(None, True, -1, 10**400, 1e308, float("nan"), float("inf"), -0.0),
    *("", " ", "--1", "1", "-", "1e400", "nan", "\ud800", "B-X", "\u0662"),
    *([], ["a"], [None], [["a"]], {}, {"a": 1}, "9" * 5_000),
  ]
)
LEAVES = st.one_of(ODD, st.text(CHARACTERS, max_size=8), st.integers(-3, 3))
VALUES = st.recursive(
  LEAVES,
  lambda inner: st.one_of(
    st.lists(inner, max_size=3),
    st.dictionaries(st.sampled_from(["text", "label", "id"]), inner),
  ),
  max_leaves=5,
)
LABELS = st.one_of(st.sampled_from(["0", "1", 1, 2.5, "x"]), VALUES)


def spell(value):
  """Returns JSON, whatever the value; half characters are escaped."""
  return json.dumps(value)


def lines_of(row):
  return st.lists(row.map(spell), min_size=1, max_size=4).map("\n".join)


def keys(**values):
  """Draws objects of these keys; now and then one of them is missing."""
  required = st.fixed_dictionaries(values)
  return st.one_of(required, st.fixed_dictionaries({}, optional=values))


SENTENCES = keys(sentence=st.one_of(st.just("the river"), VALUES), label=LABELS)
WORDS = keys(
  tokens=st.one_of(st.just(["a", "b"]), VALUES),
  tags=st.one_of(st.just(["O", "B-X"]), VALUES),
)
ANSWERS = st.lists(
  keys(
    text=st.one_of(st.just("river"), VALUES),
    answer_start=st.one_of(st.sampled_from([4, -1, 10**30]), VALUES),
  ),
  max_size=2,
)
QUESTIONS = keys(
  id=st.one_of(st.integers(0, 99), VALUES),
  question=st.one_of(st.just("What?"), VALUES),
  answers=st.one_of(ANSWERS, VALUES),
  is_impossible=st.one_of(st.booleans(), VALUES),
)
PARAGRAPHS = keys(
  context=st.one_of(st.just("the river moves"), VALUES),
  qas=st.one_of(st.lists(QUESTIONS, max_size=2), VALUES),
)
ARTICLES = keys(
  data=st.one_of(
    st.lists(keys(paragraphs=st.lists(PARAGRAPHS, max_size=2)), max_size=2),
    VALUES,
  )
)
TABLES = st.lists(
  st.lists(st.text(CHARACTERS, max_size=6), min_size=2, max_size=3).map(
    "\t".join
  ),
  max_size=4,
).map(lambda rows: "\n".join(["sentence\tlabel", *rows]))
DEEP = st.sampled_from(["[", '{"sentence":']).map(lambda s: s * 3_000)
# What a file holds, by its ending.
TEXTS = {
  "tsv": st.one_of(TABLES, st.text(CHARACTERS)),
  "csv": st.one_of(
    TABLES.map(lambda t: t.replace("\t", ",")), st.text(CHARACTERS)
  ),
  "jsonl": st.one_of(
    lines_of(SENTENCES), lines_of(WORDS), st.text(CHARACTERS), DEEP
  ),
  "conll": st.one_of(TABLES, st.text(st.sampled_from("a O\tB-I-L-X\n#"))),
  "squad": st.one_of(ARTICLES.map(spell), VALUES.map(spell), DEEP),
}
# Task, its readers' formats, and its columns.
TASKS = st.sampled_from(
  [
    ("classification", "tsv"),
    ("classification", "csv"),
    ("classification", "jsonl"),
    ("multilabel", "jsonl"),
    ("multilabel", "tsv"),
    ("regression", "jsonl"),
    ("regression", "csv"),
    ("tagging", "jsonl"),
    ("tagging", "conll"),
    ("question_answering", "squad"),
  ]
)


@st.composite
def cases(draw):
  """Draws (task, format, bytes of a file, whether labels are asked for)."""
  kind, form = draw(TASKS)
  data = draw(TEXTS[form]).encode("utf-8", "surrogatepass")
  if draw(st.integers(0, 4)) == 0:
    at = draw(st.integers(0, len(data)))
    data = data[:at] + draw(st.binary(max_size=3)) + data[at + 1 :]
  return kind, form, data, draw(st.booleans())


def create_config(kind, form):
  config = default_config()
  config.task.kind = kind
  config.task.no_answer = True
  config.data.max_seq_length = 32
  config.data.max_query_length = 8
  config.data.doc_stride = 4
  if form != "squad":
    config.data.format = form
  if kind == "tagging":
    columns = ("1", "-1") if form == "conll" else ("tokens", "tags")
    config.data.text_a, config.data.label = columns
  return config


def use(path, kind, form, labelled):
  """Reads rows and does with them all that a run does."""
  config, task = create_config(kind, form), KINDS[kind]
  rows = task.read_rows(str(path), config, labelled)
  features = task.encode(rows, TOKENIZER, config)
  if not labelled:
    return rows
  names = task.label_names(rows)
  task.labels(rows, features, names)
  shape = {
    "tagging": (32, len(names)),
    "question_answering": (2, 32),
    "regression": (1,),
  }.get(kind, (len(names),))
  logits = np.zeros((len(features), *shape), np.float32)
  predictions = task.decode(logits, rows, features, names, config)
  for value in task.score(predictions, rows, names).values():
    assert isinstance(value, float)
  task.save_predictions(epath.Path(path.parent / "out"), rows, predictions)
  return rows


def check(case):
  kind, form, data, labelled = case
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "data.txt"
    path.write_bytes(data)
    try:
      assert use(path, kind, form, labelled)
    except UserError as error:
      assert_one_line(error)


def assert_one_line(error):
  assert "\n" not in str(error)
  assert len(str(error)) < 1_000
  print(str(error).encode("utf-8", "backslashreplace"))


SETTINGS = hypothesis.settings(
  deadline=None,
  derandomize=True,
  database=None,
  # A failure is shown as it was found: shrinking takes minutes.
  phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
  suppress_health_check=list(hypothesis.HealthCheck),
)
HOSTILE = [
  ("classification", "jsonl", b'{"sentence": ' + b"[" * 3_000, True),
  ("regression", "jsonl", b'{"sentence": "a", "label": %d}' % 10**400, True),
  (
    "regression",
    "jsonl",
    b'{"sentence": "a", "label": ' + b"9" * 5_000 + b"}",
    True,
  ),
  ("classification", "tsv", b"sentence\tlabel\na\t--1\nb\t1\n", True),
  (
    "classification",
    "jsonl",
    b'{"sentence": "\\ud800", "label": "\\ud801"}',
    True,
  ),
  ("tagging", "jsonl", b'{"tokens": [], "tags": []}', True),
  ("multilabel", "jsonl", b'{"sentence": "a", "label": []}', True),
]


@pytest.mark.parametrize("case", HOSTILE, ids=range(len(HOSTILE)))
def test_files_that_broke_a_reader_end_in_rows_or_one_line(case):
  check(case)


@hypothesis.settings(SETTINGS, max_examples=250)
@hypothesis.given(cases())
def test_no_file_ends_a_reader_in_anything_but_rows_or_one_line(case):
  check(case)


@pytest.mark.slow
@hypothesis.settings(SETTINGS, max_examples=2_000)
@hypothesis.given(cases())
def test_no_file_of_two_thousand_ends_a_reader_in_a_traceback(case):
  check(case)


ROW_FILES = st.tuples(
  st.sampled_from([".txt", ".jsonl", ".txt.gz", ".jsonl.gz"]),
  st.one_of(
    st.binary(),
    lines_of(keys(text=VALUES, text_pair=VALUES)).map(str.encode),
    DEEP.map(str.encode),
  ),
  st.booleans(),
)


@hypothesis.settings(SETTINGS, max_examples=200)
@hypothesis.given(ROW_FILES)
def test_no_file_to_embed_ends_in_anything_but_texts_or_one_line(case):
  suffix, data, is_packed = case
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / f"data{suffix}"
    path.write_bytes(gzip.compress(data) if is_packed else data)
    try:
      for text, pair in iterate_rows(path, "text"):
        TOKENIZER.encode(text, pair)
    except UserError as error:
      assert_one_line(error)


@pytest.mark.parametrize("kind", ["classification", "question_answering"])
def test_names_and_places_that_hold_no_text_are_one_line(tmp_path, kind):
  config = create_config(kind, "squad")
  (tmp_path / "folder.tsv").mkdir()
  os.mkfifo(tmp_path / "pipe.tsv")
  os.mkfifo(tmp_path / "pipe.txt")
  for name in (
    "folder.tsv",
    "pipe.tsv",
    "missing.tsv",
    "caf\udce9.tsv",
    "a\0b.tsv",
  ):
    with pytest.raises(UserError) as error:
      KINDS[kind].read_rows(str(tmp_path / name), config, True)
    assert_one_line(error.value)
  for name in ("pipe.txt", "caf\udce9.txt", "a\0b.txt", "missing.txt"):
    with pytest.raises(UserError) as error:
      list(iterate_rows(str(tmp_path / name), "text"))
    assert_one_line(error.value)
