"""Predictions for new rows: read as the training data was, or refused."""

import json

import pytest
import transformers

from bert_jax.errors import UserError
from bert_jax.finetune.config import default_config
from bert_jax.finetune.predict import prediction
from tests.weights import tiny_bert

NAMES = {
  "classification": ("0", "1"),
  "tagging": ("O", "B-PER"),
}
CLASSES = {
  "classification": transformers.BertForSequenceClassification,
  "tagging": transformers.BertForTokenClassification,
}


@pytest.fixture(scope="module", name="models")
def _models(tmp_path_factory):
  """A random model of each kind, ready to predict."""
  models = {}
  for kind, names in NAMES.items():
    folder = tmp_path_factory.mktemp(kind)
    tiny_bert.save(
      folder,
      CLASSES[kind],
      tiny_bert.make_vocab(),
      id2label=dict(enumerate(names)),
      problem_type="single_label_classification",
    )
    config = default_config()
    config.task.kind = kind
    config.model.dtype = "float32"
    config.data.max_seq_length = 32
    if kind == "tagging":
      config.data.text_a, config.data.label = "1", "-1"
    models[kind] = prediction.load_model(str(folder), config)
  return models


def _predict(models, kind, tmp_path, text, **data):
  """Returns (metrics, predictions) of a file named in.txt."""
  (tmp_path / "in.txt").write_text(text)
  model, compute_logits = models[kind]
  with model.config.unlocked():
    before = model.config.data.to_dict()
    model.config.data.update(data)
  try:
    rows, predictions = prediction.predict(
      model, compute_logits, str(tmp_path / "in.txt"), tmp_path / "out.jsonl"
    )
    scores = prediction.score(model, rows, predictions)
  finally:
    model.config.data.update(before)
  lines = (tmp_path / "out.jsonl").read_text().splitlines()
  return scores, [json.loads(line) for line in lines]


def test_a_txt_file_is_read_as_the_training_data_were(models, tmp_path):
  text = "John B-PER\nsings O\n\nEve B-PER\n\n"
  scores, rows = _predict(models, "tagging", tmp_path, text)
  assert [row["words"] for row in rows] == [["John", "sings"], ["Eve"]]
  assert set(scores) == {"f1", "precision", "recall", "accuracy"}
  text = "sentence\tlabel\na b\t1\nc\t0\n"
  scores, rows = _predict(models, "classification", tmp_path, text)
  assert [row["gold"] for row in rows] == ["1", "0"]
  assert "accuracy" in scores


def test_lines_are_read_where_they_are_asked_for(models, tmp_path):
  text = "John sings\nEve\n"
  scores, rows = _predict(models, "tagging", tmp_path, text, format="lines")
  assert [row["words"] for row in rows] == [["John", "sings"], ["Eve"]]
  assert scores is None


@pytest.mark.parametrize(
  ("kind", "text", "message"),
  [
    ("classification", "just a text\nand one\n", "no column 'sentence'.*lines"),
    ("tagging", "John sings\nEve laughs\n", "tag 'sings'; expected .*lines"),
    ("tagging", "John sings well\nEve laughs\n", "has 2 columns.*lines"),
  ],
)
def test_a_wrong_reader_names_the_remedy(models, tmp_path, kind, text, message):
  with pytest.raises(UserError, match=message):
    _predict(models, kind, tmp_path, text)


def test_secret_labels_bring_predictions_without_metrics(
  models, tmp_path, capsys
):
  """GLUE's test files say -1."""
  text = "sentence\tlabel\na b\t-1\nc\t-1\n"
  scores, rows = _predict(models, "classification", tmp_path, text)
  assert scores is None
  assert [row["label"] in ("0", "1") for row in rows] == [True, True]
  assert "predict: no metrics" in capsys.readouterr().out


def test_a_txt_file_beside_a_folder_must_be_named(models):
  model, _ = models["tagging"]
  with pytest.raises(UserError, match="expected --format=lines, tsv or conll"):
    prediction._check_ending(model.config, "new.txt", "")
  prediction._check_ending(model.config, "new.txt", "conll")
  prediction._check_ending(model.config, "new.conll", "")
