"""Reading rows: the traps of real files, and mistakes told with their line."""

import json
import textwrap

import ml_collections
import numpy as np
import pytest
import transformers

from bert_jax.data.tokenization import create_tokenizer
from bert_jax.errors import UserError
from bert_jax.finetune import model
from bert_jax.finetune.config import default_config
from bert_jax.finetune.tasks import KINDS
from tests import commands
from tests.weights import tiny_bert


def _write(tmp_path, name, text):
  path = tmp_path / name
  path.write_bytes(text.encode("utf-8"))
  return str(path)


def _config(**settings):
  config = default_config()
  config.update_from_flattened_dict(settings)
  return ml_collections.ConfigDict(config)


def _read(path, kind="classification", *, labelled=True, **settings):
  config = _config(**{"task.kind": kind, **settings})
  return KINDS[kind].read_rows(path, config, labelled)


def test_a_byte_order_mark_and_literal_quotes_are_as_in_mrpc(tmp_path):
  path = _write(
    tmp_path,
    "train.txt",
    "\ufeffQuality\t#1 ID\t#1 String\r\n"
    '1\t7\tHe said "no.\r\n0\t8\t"Yes" it is\r\n',
  )
  rows = _read(
    path,
    **{
      "data.format": "tsv",
      "data.text_a": "#1 String",
      "data.label": "Quality",
    },
  )
  assert [row.texts for row in rows] == [('He said "no.',), ('"Yes" it is',)]
  assert [row.label for row in rows] == ["1", "0"]


def test_columns_without_a_header_are_named_by_number_from_either_end(tmp_path):
  path = _write(
    tmp_path, "sts.csv", "a\tb\t4.5\tone\ttwo\na\tb\t0\tx\ty\tmore\n"
  )
  rows = _read(
    path,
    "regression",
    **{
      "data.format": "tsv",
      "data.header": False,
      "data.text_a": "4",
      "data.text_b": "5",
      "data.label": "3",
    },
  )
  assert [(row.texts, row.label) for row in rows] == [
    (("one", "two"), 4.5),
    (("x", "y"), 0.0),
  ]
  rows = _read(
    path,
    **{
      "data.format": "tsv",
      "data.header": False,
      "data.text_a": "1",
      "data.label": "-1",
    },
  )
  assert [row.label for row in rows] == ["two", "more"]


def test_quoted_tables_hold_delimiters_and_line_ends(tmp_path):
  text = 'sentence,label\n"a, ""b""\nc",x\nplain,y\n'
  rows = _read(_write(tmp_path, "train.csv", text))
  assert [row.texts[0] for row in rows] == ['a, "b"\nc', "plain"]
  assert rows[1].where.endswith("line 4")
  rows = _read(
    _write(
      tmp_path,
      "train.tsv",
      text.replace(",x", "\tx")
      .replace(",y", "\ty")
      .replace(",label", "\tlabel"),
    ),
    **{"data.format": "tsv_quoted"},
  )
  assert [row.label for row in rows] == ["x", "y"]


def test_only_line_ends_end_a_line(tmp_path):
  text = "sentence\tlabel\na\u2028b\x85c\x0bd\tx\n"
  rows = _read(_write(tmp_path, "train.tsv", text))
  assert rows[0].texts == ("a\u2028b\x85c\x0bd",)


def test_json_lines_give_labels_of_any_type_a_name(tmp_path):
  lines = [
    {"sentence": "a", "label": 1},
    {"sentence": 2.5, "label": "x"},
    {"sentence": "", "label": True},
  ]
  path = _write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n")
  rows = _read(path)
  assert [row.label for row in rows] == ["1", "x", "True"]
  assert [row.texts[0] for row in rows] == ["a", "2.5", ""]


def test_several_labels_may_be_none(tmp_path):
  path = _write(tmp_path, "a.tsv", "sentence\tlabel\na\tx, y\nb\t\n")
  rows = _read(path, "multilabel")
  assert [row.label for row in rows] == [("x", "y"), ()]
  assert KINDS["multilabel"].label_names(rows) == ("x", "y")
  labels = KINDS["multilabel"].labels(rows, None, ("w", "x", "y"))
  np.testing.assert_array_equal(labels, [[0, 1, 1], [0, 0, 0]])


def test_conll_columns_skip_document_lines_and_comments(tmp_path):
  text = (
    "-DOCSTART- -X- O\n\n# id 1 domain=en\nEU NNP B-ORG\n# NN O\n\n\n"
    "New\u00a0York NNP B-LOC\n"
  )
  rows = _read(
    _write(tmp_path, "eng.train", text),
    "tagging",
    **{"data.text_a": "1", "data.label": "-1"},
  )
  assert [row.words for row in rows] == [("EU", "#"), ("New\u00a0York",)]
  assert [row.label for row in rows] == [("B-ORG", "O"), ("B-LOC",)]
  assert rows[1].where.endswith("line 8")
  assert KINDS["tagging"].label_names(rows) == ("O", "B-LOC", "B-ORG")


def test_lines_to_predict_have_an_example_each(tmp_path):
  path = _write(tmp_path, "new.txt", "first\tsecond\n\nlast\tone\n")
  config = {"data.text_a": "premise", "data.format": "lines"}
  rows = _read(path, labelled=False, **config)
  assert [row.texts for row in rows] == [
    ("first\tsecond",),
    ("",),
    ("last\tone",),
  ]
  with pytest.raises(UserError, match="line 2 has 1 texts; expected 2"):
    _read(path, labelled=False, **config, **{"data.text_b": "hypothesis"})
  rows = _read(path, "tagging", labelled=False, **{"data.format": "lines"})
  assert [row.words for row in rows] == [
    ("first", "second"),
    (),
    ("last", "one"),
  ]


def _squad(**question):
  question = {
    "id": "q1",
    "question": "What?",
    "answers": [{"text": "b", "answer_start": 2}],
    **question,
  }
  qas = [{k: v for k, v in question.items() if v is not None}]
  return json.dumps(
    {"data": [{"paragraphs": [{"context": "a b", "qas": qas}]}]}
  )


MISTAKES = [
  *(
    (
      "a.jsonl",
      f'{{"sentence": {value}, "label": 1}}\n',
      {},
      f"line 1, column 'sentence', has {shown}; expected text",
    )
    for value, shown in (
      ("null", "None"),
      ("NaN", "nan"),
      ('["a", "b"]', "['a', 'b']"),
      ("true", "True"),
    )
  ),
  ("a.jsonl", '{"sentence": "a", "label": NaN}\n', {}, "has nan"),
  ("a.jsonl", '{"sentence": "a", "label": [1]}\n', {}, "has [1]"),
  (
    "a.jsonl",
    f'{{"sentence": "a", "label": 1{"0" * 400}}}\n',
    {"task.kind": "regression"},
    "has label 1000",
  ),
  (
    "a.jsonl",
    '{"tokens": [], "tags": []}\n',
    {"task.kind": "tagging", "data.text_a": "tokens", "data.label": "tags"},
    "has no words in any row",
  ),
  (
    "a.jsonl",
    '{"tokens": ["a", null], "tags": ["O", "O"]}\n',
    {"task.kind": "tagging", "data.text_a": "tokens", "data.label": "tags"},
    "column 'tokens', has None; expected text",
  ),
  *(
    (
      "a.json",
      _squad(answers=[{"text": "b", "answer_start": start}]),
      {"task.kind": "question_answering"},
      f"question q1 has {start!r} as answer_start; expected a whole number",
    )
    for start in ("2", None, 1.5)
  ),
  (
    "a.json",
    _squad(question=["What?"]),
    {"task.kind": "question_answering"},
    "has ['What?'] as question; expected text",
  ),
  ("a.tsv", "sentence\tsentence\na\t1\n", {}, "'sentence' 2 times"),
  (
    "a.tsv",
    "sentence\tlabel\na\t1\nb\n",
    {},
    "line 3 has 1 columns; expected 2",
  ),
  ("a.tsv", "sentence\tlabel\na\t\n", {}, "line 2 has no label"),
  ("a.tsv", "text\tlabel\na\t1\n", {}, "line 2 has no column 'sentence'"),
  ("a.tsv", "sentence\tlabel\n", {}, "has no rows"),
  ("a.csv", 'sentence,label\n"a,1\n', {}, "line 2 is no row of a table"),
  ("a.jsonl", '{"sentence": "a"\n', {}, "line 1 can't be read: it is not JSON"),
  ("a.jsonl", "[1]\n", {}, "line 1 is a JSON list; expected an object"),
  ("a.jsonl", '{"sentence": "a", "label": null}\n', {}, "line 1 has no label"),
  (
    "a.tsv",
    "sentence\tlabel\na\thigh\n",
    {"task.kind": "regression"},
    "line 2 has label 'high'; expected a number",
  ),
  (
    "a.tsv",
    "sentence\tlabel\na\tnan\n",
    {"task.kind": "regression"},
    "line 2 has label 'nan'; expected a number",
  ),
  (
    "a.conll",
    "a O\n\nb\n",
    {"task.kind": "tagging", "data.text_a": "1", "data.label": "-1"},
    "line 3 has 1 columns; expected 2",
  ),
  (
    "a.jsonl",
    '{"tokens": ["a", "b"], "tags": ["O"]}\n',
    {"task.kind": "tagging", "data.text_a": "tokens", "data.label": "tags"},
    "line 1 has 2 words and 1 tags",
  ),
  (
    "a.json",
    _squad(question=None),
    {"task.kind": "question_answering"},
    "question q1 has no question; expected SQuAD's data",
  ),
  (
    "a.json",
    _squad(answers=None),
    {"task.kind": "question_answering"},
    "question q1 has no answers",
  ),
  (
    "a.json",
    _squad(answers=[], is_impossible=True),
    {"task.kind": "question_answering"},
    "set --config.task.no_answer=True",
  ),
]


@pytest.mark.parametrize(("name", "text", "settings", "message"), MISTAKES)
def test_a_mistake_is_one_line_with_the_row(
  tmp_path, name, text, settings, message
):
  path = _write(tmp_path, name, text)
  with pytest.raises(UserError) as error:
    _read(path, settings.get("task.kind", "classification"), **settings)
  assert message in str(error.value)
  assert "\n" not in str(error.value)
  assert str(tmp_path) in str(error.value)


def test_bytes_that_are_no_utf8_are_told_with_their_line(tmp_path):
  path = tmp_path / "a.tsv"
  path.write_bytes(b"sentence\tlabel\nfine\t1\ncaf\xe9\t0\n")
  with pytest.raises(UserError, match=r"line 3 is not UTF-8 \(byte 0xe9\)"):
    _read(str(path))
  with pytest.raises(UserError, match="can't be read"):
    _read(str(tmp_path / "none.tsv"))


def test_an_unknown_label_is_told_with_its_row(tmp_path):
  rows = _read(_write(tmp_path, "dev.tsv", "sentence\tlabel\na\tx\nb\tz\n"))
  with pytest.raises(
    UserError, match="line 3 has label 'z'; expected one of x, y"
  ):
    KINDS["classification"].labels(rows, None, ("x", "y"))


def test_an_answer_whose_place_is_unknown_is_found_in_the_text(tmp_path):
  """answer_start -1, and one beyond the text."""
  for start in (-1, 99):
    text = _squad(answers=[{"text": "b", "answer_start": start}])
    kind = "question_answering"
    rows = _read(_write(tmp_path, "a.json", text), kind)
    config = _config(
      **{
        "data.max_seq_length": 16,
        "data.max_query_length": 4,
        "data.doc_stride": 2,
      }
    )
    vocab = tiny_bert.make_vocab()
    features = KINDS[kind].encode(rows, create_tokenizer(vocab, True), config)
    labels = KINDS[kind].labels(rows, features, ())
    ids = features.arrays["input_ids"][0, labels[0]]
    np.testing.assert_array_equal(ids, vocab.index("b"))


def test_a_header_that_may_be_a_row_is_told(tmp_path, capsys):
  path = _write(tmp_path, "a.tsv", "a river\t1\na stone\t0\n")
  numbers = {"data.text_a": "1", "data.label": "2"}
  assert len(_read(path, **numbers)) == 1
  told = capsys.readouterr().out
  assert "the first line of" in told
  assert "'a river, 1'" in told
  assert "--config.data.header=False" in told
  assert len(_read(path, **numbers, **{"data.header": False})) == 2
  named = _write(tmp_path, "b.tsv", "sentence\tlabel\na\t1\n")
  assert len(_read(named)) == 1
  assert capsys.readouterr().out == ""


def test_rows_that_are_cut_are_counted(tmp_path, capsys):
  text = "sentence\tlabel\n" + "a b c d e f g\t1\n" * 2 + "a\t0\n"
  rows = _read(_write(tmp_path, "a.tsv", text))
  config = _config(**{"data.max_seq_length": 8})
  tokenizer = create_tokenizer(tiny_bert.make_vocab(), True)
  KINDS["classification"].encode(rows, tokenizer, config)
  assert capsys.readouterr().out == "data: 2 of 3 rows are cut at 8 tokens\n"
  KINDS["classification"].encode(rows[2:], tokenizer, config)
  assert capsys.readouterr().out == ""


def test_pairs_need_two_token_types(tmp_path):
  vocab = tiny_bert.make_vocab()
  tiny_bert.save(tmp_path, transformers.BertModel, vocab, type_vocab_size=1)
  one = {"data.max_seq_length": 16}
  assert model.load_init(str(tmp_path), _config(**one))[0].vocab == vocab
  for two in (
    {"data.text_b": "second"},
    {"task.kind": "question_answering"},
  ):
    with pytest.raises(UserError, match="one token type"):
      model.load_init(str(tmp_path), _config(**one, **two))


def test_labels_that_only_look_like_numbers_are_sorted_as_text(tmp_path):
  lines = "".join(f"a\t{label}\n" for label in ("--1", "1", "\u00b2", "-1"))
  rows = _read(_write(tmp_path, "a.tsv", "sentence\tlabel\n" + lines))
  names = KINDS["classification"].label_names(rows)
  assert names == ("--1", "-1", "1", "\u00b2")


def test_number_labels_are_in_the_order_of_their_values(tmp_path):
  lines = "".join(f"a\t{i}\n" for i in (10, 9, 1, 2))
  rows = _read(_write(tmp_path, "a.tsv", "sentence\tlabel\n" + lines))
  assert KINDS["classification"].label_names(rows) == ("1", "2", "9", "10")


# Prepares a data set as a user's own builder does, and reads it.
_TFDS = """
  import tensorflow_datasets as tfds

  from bert_jax.errors import UserError
  from bert_jax.finetune import readers

  class MyTask(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      classes = tfds.features.ClassLabel(names=["bad", "good"])
      features = tfds.features.FeaturesDict({
        "sentence": tfds.features.Text(),
        "label": classes,
        "tags": tfds.features.Sequence(classes),
      })
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples((1, 0)),
              "test": self._generate_examples((-1, -1))}

    def _generate_examples(self, labels):
      for i, label in enumerate(labels):
        yield i, {"sentence": f"caf\\u00e9 {i}", "label": label, "tags": [1, 0]}

  MyTask(file_format="array_record").download_and_prepare()
  train = readers.read_records("tfds:my_task:train")
  assert {r.values["sentence"]: r.values["label"] for r in train} == {
    "caf\\u00e9 0": "good", "caf\\u00e9 1": "bad"}
  assert train[0].values["tags"] == ["good", "bad"]
  test = readers.read_records("tfds:my_task:test")
  assert [r.values["label"] for r in test] == [None, None]
  try:
    readers.read_records("tfds:my_task:dev")
  except UserError as e:
    print(e)
"""


def test_tfds_gives_names_for_classes_and_none_for_secret_labels(tmp_path):
  program = textwrap.dedent(_TFDS)
  done = commands.run_program(program, TFDS_DATA_DIR=tmp_path)
  assert done.returncode == 0, done.stderr
  assert "has no split 'dev'; it has: train, test" in done.stdout


def test_long_sentences_are_cut_between_words_and_keep_every_tag():
  words = ("abc", "d", "\x00", "efghijklmnop", "q", "rs")
  tags = ("A", "B", "C", "D", "E", "F")
  kind = KINDS["tagging"]
  from bert_jax.finetune.tagging import Row

  rows = [Row("here", words, tags), Row("there", (), ())]
  config = _config(**{"task.kind": "tagging", "data.max_seq_length": 8})
  vocab = tiny_bert.make_vocab()
  features = kind.encode(rows, create_tokenizer(vocab, True), config)
  lengths = features.arrays["length"]
  assert lengths.max() <= 8
  labels = kind.labels(rows, features, tags)
  logits = np.eye(6)[np.where(labels < 0, 0, labels)]
  predictions = kind.decode(logits, rows, features, tags, config)
  assert [p["tags"] for p in predictions] == [list(tags), []]
  unknown = vocab.index("[UNK]")
  assert (features.arrays["input_ids"] == unknown).sum() == 1
