"""Extractive question answering: SQuAD 1.1 and 2.0 (BERT, 4.2 and 4.3).

A context too long for the model is read through overlapping windows. Answers
are spans of whole words of the original text, found by its characters.
"""

import json

import numpy as np

from bert_jax.errors import UserError
from bert_jax.finetune import metrics, squad_file
from bert_jax.finetune.features import create_features
from bert_jax.storage import paths

# Slot of [CLS], the label of a window without the answer.
_NO_ANSWER = 0


def read_rows(source, config, labelled):
  """Reads SQuAD's JSON.

  Args:
    source: path.
    config: the run's settings.
    labelled: whether every question must say its answers.

  Returns:
    list of `Row`.

  Raises:
    UserError: it is no SQuAD file, or a question is not as it must be.
  """
  rows = squad_file.read_questions(source, labelled)
  _check_rows(source, rows, config)
  return rows


def _check_rows(source, rows, config):
  seen = set()
  for row in rows:
    if row.id in seen:
      raise UserError(f"{source} has two questions {row.id}; expected one")
    seen.add(row.id)
    if row.label == () and not config.task.no_answer:
      raise UserError(
        f"{row.where} has no answer in its text; expected one, as in SQuAD 1.1 "
        "(for SQuAD 2.0 set --config.task.no_answer=True)"
      )


def span_names(rows):
  """Returns transformers' names for the two outputs."""
  del rows
  return ("LABEL_0", "LABEL_1")


def encode(rows, tokenizer, config):
  """Turns rows to features, the windows, without labels.

  Args:
    rows: list of `Row`.
    tokenizer: `tokenizers.Tokenizer`.
    config: the run's settings; neighbouring windows share `data.doc_stride`
      tokens of the context.

  Returns:
    `Features`; a place is (slot of the window's first context token, int [T, 2]
    the characters of each context token's beginning and end, int [T, 2] those
    of its word).
  """
  data = config.data
  questions = _cut_questions(rows, tokenizer, data.max_query_length)
  tokenizer.enable_truncation(
    data.max_seq_length, stride=data.doc_stride, strategy="only_second"
  )
  pairs = [(q, row.context) for q, row in zip(questions, rows, strict=True)]
  encodings = tokenizer.encode_batch(pairs)
  tokenizer.no_truncation()
  windows, row_of, places = [], [], []
  for number, encoding in enumerate(encodings):
    of_row = [encoding, *encoding.overflowing]
    windows += of_row
    row_of += [number] * len(of_row)
    places += _places(of_row)
  return create_features(
    [window.ids for window in windows],
    data,
    np.array([sum(window.type_ids) for window in windows]),
    row_of,
    places,
  )


def _cut_questions(rows, tokenizer, max_query_length):
  """Returns the questions, without what is beyond their longest length."""
  encodings = tokenizer.encode_batch(
    [row.question for row in rows], add_special_tokens=False
  )
  return [
    row.question[: encoding.offsets[:max_query_length][-1][1]]
    if len(encoding.ids) > max_query_length
    else row.question
    for row, encoding in zip(rows, encodings, strict=True)
  ]


def _places(windows):
  """Returns where the tokens of one context's windows are in it."""
  slots = [
    [i for i, part in enumerate(window.sequence_ids) if part == 1]
    for window in windows
  ]
  # Words are whole here, though a window may cut one.
  words = {}
  for window, context in zip(windows, slots, strict=True):
    for i in context:
      begin, end = window.offsets[i]
      word = words.setdefault(window.word_ids[i], [begin, end])
      word[:] = min(word[0], begin), max(word[1], end)
  return [
    (
      context[0] if context else 0,
      np.array([window.offsets[i] for i in context]).reshape(-1, 2),
      np.array([words[window.word_ids[i]] for i in context]).reshape(-1, 2),
    )
    for window, context in zip(windows, slots, strict=True)
  ]


def span_labels(rows, features, names):
  """Returns int32 [N, 2], the slots of the first answer's beginning and end."""
  del names
  lost = []
  labels = np.full((len(features), 2), _NO_ANSWER, np.int32)
  for i, place in enumerate(features.places):
    row = rows[features.row_of[i]]
    if row.label:
      span = _find_answer(row.context, *row.label[0])
      if span:
        labels[i] = _slots_of(span, place)
      elif row.id not in lost:
        lost.append(row.id)
  if lost:
    print(
      f"data: the answers of {len(lost)} questions are not in their texts; "
      f"taken as unanswered (first: {lost[0]})"
    )
  return labels


def _find_answer(context, start, text):
  """Returns the characters of an answer, (begin, end), or None.

  Some files count bytes or code units: the text nearest to the place counts.
  """
  start = max(start, 0)  # -1 is how some files say that it is not known
  if not text or context[start : start + len(text)] == text:
    return (start, start + len(text)) if text else None
  before = context.rfind(text, 0, start + len(text))
  after = context.find(text, start)
  found = [place for place in (before, after) if place >= 0]
  if not found:
    return None
  nearest = min(found, key=lambda place: abs(place - start))
  return nearest, nearest + len(text)


def _slots_of(span, place):
  """Returns the slots of a span in a window, or [CLS] if it is not whole."""
  first, tokens, _ = place
  begin, end = span
  if not len(tokens) or tokens[0, 0] > begin or tokens[-1, 1] < end:
    return _NO_ANSWER, _NO_ANSWER
  start_slot = int(np.searchsorted(tokens[:, 1], begin, side="right"))
  end_slot = int(np.searchsorted(tokens[:, 0], end, side="left")) - 1
  if end_slot < start_slot:
    return _NO_ANSWER, _NO_ANSWER
  return first + start_slot, first + end_slot


def has_answers(rows, names):
  """Tells whether every question says its answers."""
  del names
  return all(row.label is not None for row in rows)


def decode(logits, rows, features, names, config):
  """Turns logits [N, 2, L] to predictions.

  Args:
    logits: float32 [N, 2, L].
    rows: list of `Row`.
    features: `Features` of these rows.
    names: not used.
    config: the run's settings.

  Returns:
    list of dicts, one a row: text, null_odds (the score of no answer less that
    of the best one) and nbest, a list of dicts with text, start (first
    character), probability and score, best first.
  """
  del names
  spans = [[] for _ in rows]
  null_scores = [np.inf] * len(rows)
  for i, place in enumerate(features.places):
    number = features.row_of[i]
    spans[number] += _best_spans(logits[i], place, config.task)
    null = float(logits[i, :, _NO_ANSWER].sum())
    null_scores[number] = min(null_scores[number], null)
  return [
    _prediction(row.context, sorted(found, reverse=True), null, config.task)
    for row, found, null in zip(rows, spans, null_scores, strict=True)
  ]


def _best_spans(logits, place, task):
  """Returns the best (score, first character, last) of a window."""
  first, tokens, words = place
  start, end = logits[:, first : first + len(tokens)]
  starts = np.argsort(-start, kind="stable")[: task.num_best]
  ends = np.argsort(-end, kind="stable")[: task.num_best]
  return [
    (float(start[s] + end[e]), int(words[s, 0]), int(words[e, 1]))
    for s in starts
    for e in ends
    if s <= e < s + task.max_answer_length
  ]


def _prediction(context, spans, null_score, task):
  nbest = {}
  for score, begin, end in spans:
    text = context[begin:end]
    if len(nbest) < task.num_best:
      nbest.setdefault(text, {"text": text, "start": begin, "score": score})
  best = next(iter(nbest.values()), {"text": "", "score": null_score})
  null_odds = null_score - best["score"]
  candidates = list(nbest.values()) or [best]
  if task.no_answer and nbest:
    candidates.append({"text": "", "start": 0, "score": null_score})
    candidates.sort(key=lambda candidate: -candidate["score"])
  scores = np.array([candidate["score"] for candidate in candidates])
  exp = np.exp(scores - scores.max())
  for candidate, p in zip(candidates, exp / exp.sum(), strict=True):
    candidate["probability"] = float(p)
  is_none = task.no_answer and null_odds > task.null_threshold
  return {
    "text": "" if is_none else best["text"],
    "null_odds": null_odds,
    "nbest": candidates,
  }


def score(predictions, rows, names):
  """Returns the metrics of question answering."""
  del names
  return metrics.squad_metrics(
    {row.id: [text for _, text in row.label] for row in rows},
    {row.id: p["text"] for row, p in zip(rows, predictions, strict=True)},
  )


def save_predictions(path, rows, predictions):
  """Writes what SQuAD's scripts read, and the n-best answers beside it.

  Args:
    path: `epath.Path` of the answers by question id; `nbest_` and `null_odds_`
      before its name make the others.
    rows: list of `Row`.
    predictions: list of dicts, as from `decode`.
  """
  for prefix, key in (
    ("nbest_", "nbest"),
    ("null_odds_", "null_odds"),
    ("", "text"),  # last: where it is, all are
  ):
    values = {row.id: p[key] for row, p in zip(rows, predictions, strict=True)}
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    paths.write_file(path.with_name(prefix + path.name), text)
