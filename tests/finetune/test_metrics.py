"""Metrics of tasks against numbers worked by hand from their definitions."""

import numpy as np
import pytest

from bert_jax.finetune import metrics


def test_classification_metrics_of_a_known_table():
  """3 true positives, 1 false one, 2 misses, 4 true negatives."""
  labels = np.array([1] * 5 + [0] * 5)
  predictions = np.array([1, 1, 1, 0, 0, 1, 0, 0, 0, 0])
  found = metrics.classification_metrics(labels, predictions, 2)
  assert found["accuracy"] == pytest.approx(0.7)
  assert found["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
  correlation = (3 * 4 - 1 * 2) / np.sqrt(4 * 5 * 5 * 6)
  assert found["matthews_correlation"] == pytest.approx(correlation)


def test_constant_predictions_have_no_correlation_and_no_warning():
  found = metrics.regression_metrics(np.arange(4.0), np.ones(4))
  assert found == {"spearmanr": 0.0, "pearson": 0.0}
  found = metrics.classification_metrics(np.array([0, 1]), np.zeros(2, int), 2)
  assert found["f1"] == found["matthews_correlation"] == 0.0


def test_ranks_and_values_correlate_in_their_own_ways():
  found = metrics.regression_metrics(
    np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 9.0])
  )
  assert found["spearmanr"] == pytest.approx(1.0)
  assert found["pearson"] == pytest.approx(
    np.corrcoef([1, 2, 3], [1, 2, 9])[0, 1]
  )


def test_several_labels_count_decisions_and_whole_rows():
  labels = np.array([[1, 0, 1], [0, 1, 0]])
  predictions = np.array([[1, 0, 0], [0, 1, 0]])
  found = metrics.multilabel_metrics(labels, predictions)
  assert found["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 0 + 1))
  assert found["macro_f1"] == pytest.approx(2 / 3)
  assert found["accuracy"] == 0.5


def test_an_entity_counts_only_whole():
  labels = [["B-PER", "I-PER", "O", "B-LOC"]]
  predictions = [["B-PER", "O", "O", "B-LOC"]]
  tags = ("O", "B-PER", "I-PER", "B-LOC")
  found = metrics.tagging_metrics(labels, predictions, tags)
  assert found["precision"] == found["recall"] == found["f1"] == 0.5
  assert found["accuracy"] == 0.75
  assert next(iter(found)) == "f1"


def test_tags_without_entities_have_an_accuracy_alone():
  found = metrics.tagging_metrics([["NN", "VB"]], [["NN", "NN"]], ("NN", "VB"))
  assert found == {"accuracy": 0.5}


@pytest.mark.parametrize(
  ("answers", "prediction", "exact", "f1"),
  [
    (["The Eiffel Tower!"], "eiffel   tower", 100, 100),
    (["in the park", "a park"], "the park.", 100, 100),
    (["big red dog"], "a red dog", 0, 100 * 2 * 1 * (2 / 3) / (1 + 2 / 3)),
    (["to be or not to be"], "to to to", 0, 100 * 2 * 2 / (6 + 3)),
    (["cat"], "", 0, 0),
    ([], "", 100, 100),
    ([], "something", 0, 0),
    (["U.S."], "us", 100, 100),
    (["theatre"], "atre", 0, 0),
  ],
)
def test_squad_scores_follow_the_rules_of_the_official_script(
  answers, prediction, exact, f1
):
  found = metrics.squad_metrics({"q": answers}, {"q": prediction})
  assert found["exact_match"] == pytest.approx(exact)
  assert found["f1"] == pytest.approx(f1)


def test_squad_scores_tell_answerable_questions_apart():
  found = metrics.squad_metrics(
    {"a": ["x"], "b": [], "c": ["y"]}, {"a": "x", "b": "z", "c": "y y"}
  )
  assert found["has_answer_exact_match"] == pytest.approx(50)
  assert found["no_answer_f1"] == 0
  assert found["f1"] == pytest.approx((100 + 0 + 100 * 2 / 3) / 3)


def test_bilou_tags_score_as_the_same_entities_in_iobes():
  iobes = (
    [["B-A", "I-A", "E-A", "O", "S-B"], ["S-A", "O"]],
    [["B-A", "I-A", "E-A", "O", "S-A"], ["S-A", "O"]],
  )
  as_bilou = {"E": "L", "S": "U"}
  bilou = [
    [[as_bilou.get(t[0], t[0]) + t[1:] for t in row] for row in rows]
    for rows in iobes
  ]
  scores = []
  for labels, predictions in (iobes, bilou):
    tags = {tag for row in labels + predictions for tag in row}
    scores.append(metrics.tagging_metrics(labels, predictions, tags))
  assert scores[0] == scores[1]
  assert scores[1]["f1"] == pytest.approx(2 / 3)


def test_one_class_alone_has_no_correlation_and_brings_no_warning():
  """scikit-learn warns of it, and here warnings are errors."""
  ones = np.ones(3, int)
  found = metrics.classification_metrics(ones, ones, 2)
  assert found == {"accuracy": 1.0, "f1": 1.0, "matthews_correlation": 0.0}
