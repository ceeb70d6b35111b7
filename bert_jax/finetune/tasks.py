"""The kinds of tasks, in one table.

A kind says how rows become features and labels, which output layer is trained
by which loss, and how logits become predictions and predictions become metrics.
"""

import dataclasses
from collections.abc import Callable

from bert_jax.finetune import (
  heads,
  losses,
  question_answering,
  sequences,
  similarity,
  summarization,
  tagging,
)


@dataclasses.dataclass(frozen=True)
class Kind:
  """The parts of a task; each function's own docstring says more.

  Attributes:
    heads: key of `hf.TASK_HEADS`, or "encoder" where there is no output layer.
    problem_type: transformers' word for the loss, or None.
    model: function (`BertConfig`, number of labels, settings `task`) -> linen
      module.
    loss: function (logits, labels) -> (sum, weight).
    read_rows: function (source, config, labelled) -> rows.
    read_training_rows: the same for training data, where their form is not that
      of the held-out data.
    label_names: function of labelled rows to a tuple of str.
    encode: function (rows, tokenizer, config) -> `Features`.
    labels: function (rows, features, names) -> numpy array [N, ...].
    labels_per_token: whether the last dimension of the labels is slots.
    decode: function (logits, rows, features, names, config) -> list of
      predictions, a dict a row.
    score: function (predictions, rows, names) -> dict of metrics; the first is
      the usual one.
    save_predictions: function (path, rows, predictions).
    has_known_labels: function (rows, names) -> whether rows can be scored.
    file_name: of the predictions in a workdir.
  """

  heads: str
  problem_type: str | None
  model: Callable
  loss: Callable
  read_rows: Callable
  label_names: Callable
  encode: Callable
  labels: Callable
  decode: Callable
  score: Callable
  read_training_rows: Callable | None = None
  labels_per_token: bool = False
  has_known_labels: Callable = sequences.has_known_labels
  save_predictions: Callable = sequences.save_predictions
  file_name: str = "predictions.jsonl"


def _with_labels(module):
  return lambda config, num_labels, task: module(config, num_labels)


KINDS = {
  "classification": Kind(
    heads="sequence-classification",
    problem_type="single_label_classification",
    model=_with_labels(heads.BertForSequenceClassification),
    loss=losses.cross_entropy,
    read_rows=sequences.read_rows,
    label_names=sequences.class_names,
    encode=sequences.encode,
    labels=sequences.class_labels,
    decode=sequences.decode_classes,
    score=sequences.score_classes,
  ),
  "multilabel": Kind(
    heads="sequence-classification",
    problem_type="multi_label_classification",
    model=_with_labels(heads.BertForSequenceClassification),
    loss=losses.binary_cross_entropy,
    read_rows=sequences.read_rows,
    label_names=sequences.multilabel_names,
    encode=sequences.encode,
    labels=sequences.multilabel_labels,
    decode=sequences.decode_multilabel,
    score=sequences.score_multilabel,
    has_known_labels=sequences.has_known_label_sets,
  ),
  "regression": Kind(
    heads="sequence-classification",
    problem_type="regression",
    model=_with_labels(heads.BertForSequenceClassification),
    loss=losses.squared_error,
    read_rows=sequences.read_rows,
    label_names=sequences.number_name,
    encode=sequences.encode,
    labels=sequences.number_labels,
    decode=sequences.decode_numbers,
    score=sequences.score_numbers,
    has_known_labels=sequences.has_numbers,
  ),
  "tagging": Kind(
    heads="token-classification",
    problem_type=None,
    model=_with_labels(heads.BertForTokenClassification),
    loss=losses.cross_entropy,
    read_rows=tagging.read_rows,
    label_names=tagging.tag_names,
    encode=tagging.encode,
    labels=tagging.tag_labels,
    labels_per_token=True,
    decode=tagging.decode,
    score=tagging.score,
    has_known_labels=tagging.has_known_tags,
  ),
  "question_answering": Kind(
    heads="question-answering",
    problem_type=None,
    model=_with_labels(heads.BertForQuestionAnswering),
    loss=losses.cross_entropy,
    read_rows=question_answering.read_rows,
    label_names=question_answering.span_names,
    encode=question_answering.encode,
    labels=question_answering.span_labels,
    decode=question_answering.decode,
    score=question_answering.score,
    save_predictions=question_answering.save_predictions,
    file_name="predictions.json",
    has_known_labels=question_answering.has_answers,
  ),
  "summarization": Kind(
    heads="token-classification",
    problem_type=None,
    model=_with_labels(heads.BertForTokenClassification),
    loss=losses.binary_cross_entropy_of_tokens,
    read_rows=summarization.read_rows,
    label_names=summarization.output_name,
    encode=summarization.encode,
    labels=summarization.sentence_labels,
    labels_per_token=True,
    decode=summarization.decode,
    score=summarization.score,
    has_known_labels=summarization.has_summaries,
  ),
  "similarity": Kind(
    heads="encoder",
    problem_type=None,
    model=lambda config, num_labels, task: heads.SentenceEncoder(
      config, task.pooling
    ),
    has_known_labels=sequences.has_numbers,
    loss=losses.similarity,
    read_rows=similarity.read_rows,
    read_training_rows=similarity.read_training_rows,
    label_names=similarity.vector_name,
    encode=similarity.encode,
    labels=similarity.labels,
    decode=similarity.decode,
    score=similarity.score,
  ),
}
