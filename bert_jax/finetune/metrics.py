"""The tasks' metrics: scikit-learn's, scipy's and seqeval's, and SQuAD's own.

Every function returns a dict whose first entry is the task's usual metric;
higher is better throughout.
"""

import collections
import re
import string

import numpy as np

from bert_jax.errors import UserError

# "O" and "B-PER": tags that mark entities.
_ENTITY_TAG = re.compile(r"O|[BIESLU]-.+")
# seqeval knows the ends of entities as E and S, not as BILOU's L and U.
_BILOU = re.compile(r"^[LU](?=-)")


def check_libraries():
  """Raises UserError where the libraries of the metrics are not installed."""
  try:
    import scipy.stats  # noqa: F401
    import seqeval.metrics  # noqa: F401
    import sklearn.metrics  # noqa: F401
  except ModuleNotFoundError as e:
    raise UserError(
      f"{e.name} is not installed; expected it for the metrics of fine-tuning "
      "(pip install -e '.[finetune]')"
    ) from None


def classification_metrics(labels, predictions, num_labels):
  """Accuracy, F1 and Matthews' correlation.

  Args:
    labels: int [N].
    predictions: int [N].
    num_labels: K.

  Returns:
    dict of floats; f1 is that of class 1 where K is 2, as GLUE has it, and the
    mean over the classes otherwise.
  """
  from sklearn import metrics

  if num_labels == 2:
    f1 = metrics.f1_score(labels, predictions, zero_division=0)
  else:
    f1 = metrics.f1_score(labels, predictions, average="macro", zero_division=0)
  # Of one class alone there is no correlation, and scikit-learn warns.
  matthews = 0.0
  if len(np.union1d(labels, predictions)) > 1:
    matthews = metrics.matthews_corrcoef(labels, predictions)
  return {
    "accuracy": float(metrics.accuracy_score(labels, predictions)),
    "f1": float(f1),
    "matthews_correlation": float(matthews),
  }


def multilabel_metrics(labels, predictions):
  """F1 over all decisions, its mean over the labels, and rows wholly right.

  Args:
    labels: 0 or 1, [N, K].
    predictions: 0 or 1, [N, K].

  Returns:
    dict of floats.
  """
  from sklearn import metrics

  def f1(average):
    score = metrics.f1_score
    return float(score(labels, predictions, average=average, zero_division=0))

  return {
    "micro_f1": f1("micro"),
    "macro_f1": f1("macro"),
    "accuracy": float(np.mean((labels == predictions).all(-1))),
  }


def regression_metrics(labels, predictions):
  """Spearman's and Pearson's correlation; 0 where one side never changes.

  Args:
    labels: float [N].
    predictions: float [N].

  Returns:
    dict of floats.
  """
  from scipy import stats

  if len(labels) < 2 or np.ptp(labels) == 0 or np.ptp(predictions) == 0:
    return {"spearmanr": 0.0, "pearson": 0.0}
  return {
    "spearmanr": float(stats.spearmanr(predictions, labels).statistic),
    "pearson": float(stats.pearsonr(predictions, labels).statistic),
  }


def marks_entities(tags):
  """Tells whether tags are of the kind "O", "B-PER", "I-PER"."""
  return all(_ENTITY_TAG.fullmatch(tag) for tag in tags)


def _to_iobes(match):
  return {"L": "E", "U": "S"}[match[0]]


def tagging_metrics(labels, predictions, tags):
  """F1, precision and recall of whole entities, and accuracy of words.

  Args:
    labels: list of lists of str.
    predictions: list of lists of str, as long.
    tags: every tag there is; without entities there is only the accuracy.

  Returns:
    dict of floats.
  """
  from seqeval import metrics

  labels, predictions = (
    [[_BILOU.sub(_to_iobes, tag) for tag in row] for row in rows]
    for rows in (labels, predictions)
  )
  accuracy = {"accuracy": float(metrics.accuracy_score(labels, predictions))}
  if not marks_entities(tags):
    return accuracy
  scores = {
    "f1": metrics.f1_score,
    "precision": metrics.precision_score,
    "recall": metrics.recall_score,
  }
  return {
    name: float(score(labels, predictions, zero_division=0))
    for name, score in scores.items()
  } | accuracy


def squad_metrics(answers, predictions):
  """Exact match and F1 of the SQuAD scripts, in per cent.

  Both take the best over the right answers; the right answer of a question
  without one is the empty text.

  Args:
    answers: dict of question id to list of str, empty where there is none.
    predictions: dict of question id to str.

  Returns:
    dict of f1 and exact_match and, where some questions have no answer, of
    both for those that have one and those that have none.
  """
  scores = {key: _best_score(answers[key], predictions[key]) for key in answers}
  result = _mean_scores(scores.values(), "")
  if not all(answers.values()):
    for name, group in (("has_answer_", True), ("no_answer_", False)):
      of_group = [s for key, s in scores.items() if bool(answers[key]) == group]
      result |= _mean_scores(of_group, name)
  return result


def _mean_scores(scores, prefix):
  f1, exact = np.mean(list(scores) or [(0, 0)], axis=0)
  return {
    f"{prefix}f1": float(100 * f1),
    f"{prefix}exact_match": float(100 * exact),
  }


def _best_score(answers, prediction):
  """Returns the best (F1, exact match) over the right answers."""
  predicted = _normalize_answer(prediction)
  # An answer of articles and punctuation alone counts as none.
  right = [a for a in map(_normalize_answer, answers) if a] or [""]
  return (
    max(_word_f1(answer.split(), predicted.split()) for answer in right),
    max(float(answer == predicted) for answer in right),
  )


def _normalize_answer(text):
  """Lower-cases, drops punctuation and articles, and joins by one space."""
  text = "".join(c for c in text.lower() if c not in string.punctuation)
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _word_f1(right, predicted):
  if not right or not predicted:
    return float(right == predicted)
  common = collections.Counter(right) & collections.Counter(predicted)
  same = sum(common.values())
  if not same:
    return 0.0
  precision, recall = same / len(predicted), same / len(right)
  return 2 * precision * recall / (precision + recall)
