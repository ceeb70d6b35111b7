"""Sentence vectors: the cosine of two vectors says how alike the texts are.

The columns that the settings name choose the loss:

  data.label   scored pairs: the cosine becomes the score (Reimers and Gurevych
               2019, section 3)
  data.text_b  pairs of texts that belong together, such as a question and its
               answer; the other rows of a batch are the negatives. data.text_c
               is a text that does not belong to the first.
  neither      plain sentences: each is paired with itself under another
               dropout mask (unsupervised SimCSE, Gao et al. 2021)

Held-out rows are scored pairs, and so is what is predicted.
"""

import dataclasses

import numpy as np

from bert_jax.errors import UserError
from bert_jax.finetune import metrics, readers
from bert_jax.finetune.features import create_features
from bert_jax.finetune.sequences import Row


def read_training_rows(source, config, labelled):
  """Reads what is trained on.

  Args:
    source: see `readers.read_records`, or a file with a sentence on each line
      where data.format is "lines".
    config: the run's settings.
    labelled: not used.

  Returns:
    list of `Row` of one to three texts; label is the score divided by
    task.max_score, or None.

  Raises:
    UserError: a row lacks a column or has no score.
  """
  data = config.data
  if data.label:
    return _read_pairs(source, config, data, labelled=True)
  if data.format == "lines":
    lines = readers.read_lines(source)
    return [Row(where, (line,), None) for where, line in lines if line.strip()]
  columns = [c for c in (data.text_a, data.text_b, data.text_c) if c]
  return [
    Row(record.where, _texts(record, columns), None)
    for record in readers.read_records(source, data.format, data.header)
  ]


def read_rows(source, config, labelled):
  """Reads pairs, with scores where there are some.

  The columns are those of `data.scored`, or of the training data where that is
  scored too.

  Args:
    source: see `readers.read_records`.
    config: the run's settings.
    labelled: whether every row must have a score.

  Returns:
    list of `Row`, see `read_training_rows`.

  Raises:
    UserError: a row lacks a column, has no score, or too high a one.
  """
  data = config.data
  columns = data if data.label else data.scored
  return _read_pairs(source, config, columns, labelled)


def _read_pairs(source, config, columns, labelled):
  rows = []
  for record in readers.read_records(source, columns.format, columns.header):
    texts = _texts(record, (columns.text_a, columns.text_b))
    value = (record.get if labelled else record.values.get)(columns.label)
    if value in (None, "") and not labelled:
      rows.append(Row(record.where, texts, None))
      continue
    label = _score(value, record, config.task.max_score)
    rows.append(Row(record.where, texts, label))
  return rows


def _texts(record, columns):
  return tuple(record.text(column) for column in columns)


def _score(value, record, max_score):
  try:
    score = float(value) / max_score
  except (TypeError, ValueError):
    score = -1.0
  if not 0 <= score <= 1:
    raise UserError(
      f"{record.where} has score {value!r}; expected 0 to {max_score:g} (see "
      "--config.task.max_score)"
    )
  return score


def vector_name(rows):
  """Returns a name for the only output, a vector."""
  del rows
  return ("vector",)


def encode(rows, tokenizer, config):
  """Turns rows to features of two or three texts each, without labels.

  Args:
    rows: list of `Row`; a text alone is taken twice.
    tokenizer: `tokenizers.Tokenizer`.
    config: the run's settings.

  Returns:
    `Features`.
  """
  texts = [row.texts if len(row.texts) > 1 else 2 * row.texts for row in rows]
  tokenizer.enable_truncation(config.data.max_seq_length)
  encodings = tokenizer.encode_batch([text for row in texts for text in row])
  tokenizer.no_truncation()
  flat = create_features([encoding.ids for encoding in encodings], config.data)
  shape = len(rows), len(texts[0])
  return dataclasses.replace(
    flat,
    arrays={
      name: array.reshape(*shape, *array.shape[1:])
      for name, array in flat.arrays.items()
    },
    row_of=np.arange(len(rows)),
    places=[None] * len(rows),
  )


def labels(rows, features, names):
  """Returns the scores, float32 [N], or else the rows' groups, int32 [N].

  Rows that share one of their first two texts, or through others, are of one
  group: neither is a wrong answer for the other.
  """
  del features, names
  if rows[0].label is not None:
    return np.array([row.label for row in rows], np.float32)
  from scipy.sparse import coo_array
  from scipy.sparse.csgraph import connected_components

  numbers = {}
  edges = [
    (i, len(rows) + numbers.setdefault(text, len(numbers)))
    for i, row in enumerate(rows)
    for text in row.texts[:2]
  ]
  nodes = len(rows) + len(numbers)
  ones = np.ones(len(edges), bool)
  graph = coo_array((ones, np.array(edges).T), shape=(nodes, nodes))
  _, groups = connected_components(graph, directed=False)
  return groups[: len(rows)].astype(np.int32)


def decode(vectors, rows, features, names, config):
  """Turns vectors [N, 2, D] to predictions: the cosine of each pair."""
  del rows, features, names, config
  norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
  unit = vectors / np.maximum(norms, 1e-12)
  return [{"score": float(c)} for c in (unit[:, 0] * unit[:, 1]).sum(-1)]


def score(predictions, rows, names):
  """Returns the correlations of cosines and scores."""
  del names
  return metrics.regression_metrics(
    np.array([row.label for row in rows], np.float32),
    np.array([p["score"] for p in predictions], np.float32),
  )


def sentence_transformers_files(
  hidden_size, pooling, max_seq_length, is_classifier=False
):
  """Returns what makes a folder one of sentence-transformers, name to JSON.

  Args:
    hidden_size: D.
    pooling: "mean" or "cls".
    max_seq_length: where texts are cut, in tokens.
    is_classifier: whether the weights are those of transformers'
      BertForSequenceClassification, of which the last hidden states are taken
      (sentence-transformers 6): its BertModel would report the classifier's
      weights as unexpected.

  Returns:
    dict of file name to what it holds.
  """
  models = "sentence_transformers.models."
  encoder = {
    "max_seq_length": max_seq_length,
    "do_lower_case": False,  # the tokenizer does that
  }
  if is_classifier:
    last_layer = ["hidden_states", -1]
    encoder |= {
      "transformer_task": "sequence-classification",
      "modality_config": {
        "text": {"method": "forward", "method_output_name": last_layer}
      },
      "module_output_name": "token_embeddings",
    }
  return {
    "modules.json": [
      {"idx": 0, "name": "0", "path": "", "type": models + "Transformer"},
      {"idx": 1, "name": "1", "path": "1_Pooling", "type": models + "Pooling"},
    ],
    "1_Pooling/config.json": {
      "word_embedding_dimension": hidden_size,
      "pooling_mode_cls_token": pooling == "cls",
      "pooling_mode_mean_tokens": pooling == "mean",
      "pooling_mode_max_tokens": False,
      "pooling_mode_mean_sqrt_len_tokens": False,
    },
    "sentence_bert_config.json": encoder,
    "config_sentence_transformers.json": {"similarity_fn_name": "cosine"},
  }
