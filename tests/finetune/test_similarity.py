"""Sentence vectors: losses and folders as sentence-transformers has them."""

import json
import logging
import warnings

import jax
import numpy as np
import pytest
import torch
import transformers

from bert_jax.data.tokenization import create_tokenizer
from bert_jax.errors import UserError
from bert_jax.finetune import losses, similarity
from bert_jax.finetune import model as model_lib
from bert_jax.finetune.config import default_config
from bert_jax.finetune.sequences import Row
from bert_jax.inference import embedding
from bert_jax.weights.pretrained import load_init
from tests.weights import tiny_bert

with warnings.catch_warnings():
  warnings.simplefilter("ignore")
  import sentence_transformers
  from sentence_transformers import losses as their_losses

TEXTS = ("abc def", "x", "a longer text, cut: " + "go on " * 20, "hello")


def _config(**settings):
  config = default_config()
  config.update_from_flattened_dict(
    {
      "task.kind": "similarity",
      "model.dtype": "float32",
      "data.label": "",
      "data.max_seq_length": 32,
      **settings,
    }
  )
  return config


def _rows(texts):
  return [Row("here", t, None) for t in texts]


def _loss(vectors, labels):
  total, weight = jax.jit(losses.similarity)(vectors, labels)
  return float(total / weight)


class _Vectors(torch.nn.Module):
  """What sentence-transformers' losses take for a model: given vectors."""

  def forward(self, features):
    return features


@pytest.mark.parametrize("num_texts", [2, 3])
def test_in_batch_negatives_are_sentence_transformers_loss(num_texts):
  vectors = np.random.default_rng(0).normal(size=(6, num_texts, 5))
  vectors = vectors.astype(np.float32)
  theirs = their_losses.MultipleNegativesRankingLoss(_Vectors(), scale=20.0)
  texts = [torch.tensor(vectors[:, i]) for i in range(num_texts)]
  expected = theirs.compute_loss_from_embeddings(texts, None).item()
  groups = np.arange(6, dtype=np.int32)
  assert _loss(vectors, groups) == pytest.approx(expected, rel=1e-5)


def test_rows_of_one_group_are_not_each_others_negatives():
  vectors = np.random.default_rng(0).normal(size=(4, 2, 5)).astype(np.float32)
  groups = np.array([0, 1, 0, 2], np.int32)
  unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
  scores = unit[:, 0] @ unit[:, 1].T / 0.05
  scores[0, 2] = scores[2, 0] = -np.inf
  expected = np.mean(np.log(np.exp(scores).sum(1)) - np.diag(scores))
  assert _loss(vectors, groups) == pytest.approx(expected, rel=1e-5)


def test_scores_are_the_cosines_to_reach():
  vectors = np.random.default_rng(0).normal(size=(6, 2, 5)).astype(np.float32)
  scores = np.linspace(0, 1, 6, dtype=np.float32)
  cosines = torch.cosine_similarity(
    torch.tensor(vectors[:, 0]), torch.tensor(vectors[:, 1])
  )
  expected = torch.nn.functional.mse_loss(cosines, torch.tensor(scores))
  assert _loss(vectors, scores) == pytest.approx(expected.item(), rel=1e-5)


def test_groups_join_rows_through_shared_texts():
  rows = _rows([("a", "b"), ("c", "d"), ("e", "b"), ("f", "e"), ("c", "g")])
  groups = similarity.labels(rows, None, None)
  assert groups.dtype == np.int32
  assert groups[0] == groups[2] == groups[3]
  assert groups[1] == groups[4] != groups[0]


def test_a_lone_sentence_is_its_own_partner():
  tokenizer = create_tokenizer(tiny_bert.make_vocab(), True)
  features = similarity.encode(_rows([("ab",), ("cde",)]), tokenizer, _config())
  ids = features.arrays["input_ids"]
  np.testing.assert_array_equal(ids[:, 0], ids[:, 1])
  assert features.arrays["length"].tolist() == [[4, 4], [5, 5]]


def test_columns_say_what_is_trained_on(tmp_path):
  path = tmp_path / "a.jsonl"
  record = {"q": "one", "a": "two", "n": "three", "s": 2.5}
  path.write_text(json.dumps(record) + "\n")
  columns = {"data.text_a": "q", "data.text_b": "a", "data.text_c": "n"}
  scored = {
    f"data.scored.{k}": v
    for k, v in (("text_a", "q"), ("text_b", "a"), ("label", "s"))
  }
  config = _config(**columns, **scored)
  (row,) = similarity.read_training_rows(str(path), config, True)
  assert (row.texts, row.label) == (("one", "two", "three"), None)
  (row,) = similarity.read_rows(str(path), config, True)
  assert (row.texts, row.label) == (("one", "two"), 0.5)
  config = _config(**columns | {"data.text_c": "", "data.label": "s"})
  (row,) = similarity.read_training_rows(str(path), config, True)
  assert (row.texts, row.label) == (("one", "two"), 0.5)
  with pytest.raises(UserError, match=r"has score 2.5; expected 0 to 1"):
    config.task.max_score = 1.0
    similarity.read_rows(str(path), config, True)
  (tmp_path / "a.txt").write_text("first\n\nsecond\tone\n")
  config = _config(**{"data.format": "lines"})
  rows = similarity.read_training_rows(str(tmp_path / "a.txt"), config, True)
  assert [row.texts for row in rows] == [("first",), ("second\tone",)]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_sentence_transformers_loads_the_folder_silently(
  tmp_path, pooling, caplog
):
  tiny_bert.save(
    tmp_path / "init", transformers.BertModel, tiny_bert.make_vocab()
  )
  config = _config(**{"task.pooling": pooling})
  found, head = model_lib.load_init(str(tmp_path / "init"), config)
  model = model_lib.create_task_model(config, found, head, ("vector",))
  params, fresh = model_lib.create_params(model)
  assert not fresh
  for _ in range(2):  # also over an earlier export
    model_lib.save_model(
      tmp_path / "out", jax.device_get(params), model, "card"
    )
  with caplog.at_level(logging.WARNING), warnings.catch_warnings():
    warnings.simplefilter("error")
    theirs = sentence_transformers.SentenceTransformer(
      str(tmp_path / "out"), device="cpu"
    )
  assert not caplog.records
  assert theirs.max_seq_length == 32
  expected = theirs.encode(list(TEXTS))
  features = model_lib.encode(
    model, _rows([(t,) for t in TEXTS]), labelled=False
  )
  vectors = model_lib.make_predict(model, params)(params, features)
  np.testing.assert_allclose(vectors[:, 0], expected, atol=1e-5)

  embedder = embedding.create_embedder(
    load_init(tmp_path / "out"), "last", None, None, 2
  )
  assert (embedder.pooling, embedder.max_length) == (pooling, 32)
  rows = embedding.embed_rows(embedder, ((text, None) for text in TEXTS))
  found = np.stack([row.vectors for row in rows])
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_classifier_gives_its_sentence_vectors_silently(tmp_path, caplog):
  """By mean pooling of its last layer; the class CrossEncoder loads it too."""
  tiny_bert.save(
    tmp_path / "init", transformers.BertModel, tiny_bert.make_vocab()
  )
  config = _config(**{"task.kind": "classification", "data.label": "label"})
  found, head = model_lib.load_init(str(tmp_path / "init"), config)
  model = model_lib.create_task_model(config, found, head, ("no", "yes", "so"))
  params, _ = model_lib.create_params(model)
  model_lib.save_model(tmp_path / "out", jax.device_get(params), model, "card")
  with caplog.at_level(logging.WARNING), warnings.catch_warnings():
    warnings.simplefilter("error")
    theirs = sentence_transformers.SentenceTransformer(
      str(tmp_path / "out"), device="cpu"
    )
    expected = theirs.encode(list(TEXTS))
  assert not caplog.records
  embedder = embedding.create_embedder(
    load_init(tmp_path / "out"), "last", None, None, 2
  )
  rows = embedding.embed_rows(embedder, ((text, None) for text in TEXTS))
  ours = np.stack([row.vectors for row in rows])
  np.testing.assert_allclose(ours, expected, atol=1e-5)
  classifier = sentence_transformers.CrossEncoder(
    str(tmp_path / "out"), device="cpu"
  )
  pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))
  features = model_lib.encode(model, _rows(pairs), labelled=False)
  logits = model_lib.make_predict(model, params)(params, features)
  found = classifier.predict(pairs, apply_softmax=False)
  np.testing.assert_allclose(found, logits, atol=1e-5)
