"""Tasks that map a text or a pair to a class, several labels or a number."""

import dataclasses
import json

import numpy as np

from bert_jax.errors import UserError
from bert_jax.finetune import metrics, readers, values
from bert_jax.finetune.features import create_features
from bert_jax.storage import paths


@dataclasses.dataclass(frozen=True)
class Row:
  """A text with its label.

  Attributes:
    where: source and line.
    texts: one str or two.
    label: as it stands in the source; None where there is none.
  """

  where: str
  texts: tuple[str, ...]
  label: object


def read_rows(source, config, labelled):
  """Reads sentences or pairs.

  Args:
    source: see `readers.read_records`.
    config: the run's settings.
    labelled: whether every row must have a label.

  Returns:
    list of `Row`.

  Raises:
    UserError: a row has no label or lacks a column.
  """
  data = config.data
  columns = [column for column in (data.text_a, data.text_b) if column]
  label_of = LABELS[config.task.kind]
  if data.format == "lines" and not labelled:
    lines = readers.read_lines(source)
    return [_line_row(where, line, len(columns)) for where, line in lines]
  records = readers.read_records(
    source, data.format, data.header, columns=(*columns, data.label)
  )
  rows = []
  for record in records:
    texts = tuple(record.text(column) for column in columns)
    value = (
      record.get(data.label) if labelled else record.values.get(data.label)
    )
    label = None if value is None else label_of(value, data, record.where)
    if labelled and label is None:
      raise UserError(
        f"{record.where} has no label in column {data.label!r}; expected one "
        "(see --config.data.label)"
      )
    rows.append(Row(record.where, texts, label))
  return rows


def _line_row(where, line, num_texts):
  texts = tuple(line.split("\t")) if num_texts > 1 else (line,)
  if len(texts) != num_texts:
    raise UserError(
      f"{where} has {len(texts)} texts; expected {num_texts}, parted by a tab"
    )
  return Row(where, texts, None)


def _class_label(value, data, where):
  del data
  return values.as_label(value, where)


def _multilabel_label(value, data, where):
  return values.as_labels(value, data.label_separator, where)


def _number_label(value, data, where):
  del data
  return values.as_number(value, where)


# Reader of a value of the label column, for each kind of task.
LABELS = {
  "classification": _class_label,
  "multilabel": _multilabel_label,
  "regression": _number_label,
}


def class_names(rows):
  """Returns the classes of labelled rows, sorted, numbers by their value."""
  return values.sort_names({row.label for row in rows})


def multilabel_names(rows):
  """Returns the labels of labelled rows, sorted."""
  labels = {label for row in rows for label in row.label}
  if not labels:
    raise UserError(
      f"{rows[0].where} and the rows after it have no labels; expected some"
    )
  return values.sort_names(labels)


def number_name(rows):
  """Returns transformers' name for the only output of a regression."""
  del rows
  return ("LABEL_0",)


def encode(rows, tokenizer, config):
  """Turns rows to features without labels.

  Args:
    rows: list of `Row`.
    tokenizer: `tokenizers.Tokenizer`.
    config: the run's settings.

  Returns:
    `Features`. Too long a pair is cut at the longer side's end.
  """
  tokenizer.enable_truncation(config.data.max_seq_length)
  texts = [row.texts if len(row.texts) == 2 else row.texts[0] for row in rows]
  encodings = tokenizer.encode_batch(texts)
  tokenizer.no_truncation()
  num_cut = sum(bool(encoding.overflowing) for encoding in encodings)
  if num_cut:
    print(
      f"data: {num_cut:,} of {len(rows):,} rows are cut at "
      f"{config.data.max_seq_length} tokens"
    )
  return create_features(
    [encoding.ids for encoding in encodings],
    config.data,
    np.array([sum(encoding.type_ids) for encoding in encodings]),
  )


def class_labels(rows, features, names):
  """Returns int32 [N], the classes' numbers."""
  del features
  return np.array([find_label(row.label, names, row) for row in rows], np.int32)


def multilabel_labels(rows, features, names):
  """Returns float32 [N, K], 1 for each label that a row has."""
  del features
  labels = np.zeros((len(rows), len(names)), np.float32)
  for i, row in enumerate(rows):
    for label in row.label:
      labels[i, find_label(label, names, row)] = 1
  return labels


def number_labels(rows, features, names):
  """Returns float32 [N], the numbers."""
  del features, names
  return np.array([row.label for row in rows], np.float32)


def find_label(label, names, row):
  """Returns a label's number.

  Raises:
    UserError: it is not known.
  """
  try:
    return names.index(label)
  except ValueError:
    raise UserError(
      f"{row.where} has label {label!r}; expected one of {', '.join(names)}, "
      "the labels of the training data (name all of them in "
      "--config.data.labels)"
    ) from None


def has_known_labels(rows, names):
  """Tells whether every row has a label that the model knows.

  GLUE's test files say -1 for labels that are kept secret.
  """
  return all(row.label is not None and row.label in names for row in rows)


def has_known_label_sets(rows, names):
  """Tells whether every row has a set of labels that the model knows."""
  return all(
    row.label is not None and set(row.label) <= set(names) for row in rows
  )


def has_numbers(rows, names):
  """Tells whether every row has a number, and not all of them -1."""
  del names
  found = {row.label for row in rows}
  return None not in found and found != {-1.0}


def decode_classes(logits, rows, features, names, config):
  """Turns logits [N, K] to predictions, see `tasks.Kind`."""
  del rows, features, config
  probabilities = _softmax(logits)
  return [
    {
      "label": names[p.argmax()],
      "score": float(p.max()),
      "probabilities": dict(zip(names, p.tolist(), strict=True)),
    }
    for p in probabilities
  ]


def decode_multilabel(logits, rows, features, names, config):
  """Turns logits [N, K] to predictions: the labels likelier than not."""
  del rows, features, config
  probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
  return [
    {
      "labels": [names[k] for k in np.flatnonzero(p > 0.5)],
      "probabilities": dict(zip(names, p.tolist(), strict=True)),
    }
    for p in probabilities
  ]


def decode_numbers(logits, rows, features, names, config):
  """Turns logits [N, 1] to predictions."""
  del rows, features, names, config
  return [{"score": float(value)} for value in logits[:, 0]]


def _softmax(logits):
  exp = np.exp(logits - logits.max(-1, keepdims=True))
  return exp / exp.sum(-1, keepdims=True)


def score_classes(predictions, rows, names):
  """Returns the metrics of a classification."""
  return metrics.classification_metrics(
    class_labels(rows, None, names),
    np.array([names.index(p["label"]) for p in predictions]),
    len(names),
  )


def score_multilabel(predictions, rows, names):
  """Returns the metrics of a multi-label classification."""
  chosen = np.array(
    [[name in p["labels"] for name in names] for p in predictions], np.float32
  )
  return metrics.multilabel_metrics(
    multilabel_labels(rows, None, names), chosen
  )


def score_numbers(predictions, rows, names):
  """Returns the metrics of a regression."""
  return metrics.regression_metrics(
    number_labels(rows, None, names),
    np.array([p["score"] for p in predictions], np.float32),
  )


def save_predictions(path, rows, predictions):
  """Writes a JSON line a row: what was predicted and what was expected.

  Args:
    path: `epath.Path`.
    rows: list of rows with a `label`.
    predictions: list of dicts.
  """
  lines = [
    json.dumps(
      {"row": i}
      | prediction
      | ({} if row.label is None else {"gold": row.label}),
      ensure_ascii=False,
    )
    for i, (row, prediction) in enumerate(zip(rows, predictions, strict=True))
  ]
  paths.write_file(path, "".join(line + "\n" for line in lines))
