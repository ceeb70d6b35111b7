"""Reads SQuAD's JSON: articles, paragraphs, questions, answers."""

import dataclasses

from bert_jax.data.json_text import parse_json, shorten
from bert_jax.errors import UserError
from bert_jax.finetune.readers import read_text
from bert_jax.storage import paths

_SPELLED = {
  str: "text",
  int: "a whole number",
  bool: "true or false",
  list: "a list",
  dict: "an object",
}


@dataclasses.dataclass(frozen=True)
class Row:
  """A question about a text.

  Attributes:
    where: source and question, for messages.
    id: str.
    question: str.
    context: str.
    label: tuple of (first character, text), the right answers; empty where
      there is none, None where none is given.
  """

  where: str
  id: str
  question: str
  context: str
  label: tuple | None


def read_questions(source, labelled):
  """Reads every question of a file.

  Args:
    source: path.
    labelled: whether every question must say its answers.

  Returns:
    list of `Row`, at least one.

  Raises:
    UserError: it is no SQuAD file, or a question is not as it must be; names
      the place.
  """
  try:
    saved = parse_json(read_text(paths.as_path(source)))
  except ValueError as e:
    raise UserError(f"{source} can't be read: {e}") from None
  rows = []
  articles = _take({"": saved}, "", dict, source)
  for a, article in enumerate(_take(articles, "data", list, source)):
    where = f"{source} article {a + 1}"
    for p, paragraph in enumerate(_list(article, "paragraphs", where)):
      place = f"{where} paragraph {p + 1}"
      questions = _list(paragraph, "qas", place)
      context = _take(paragraph, "context", str, place)
      rows += [_read(source, qa, context, labelled, place) for qa in questions]
  if not rows:
    raise UserError(f"{source} has no questions; expected at least one")
  return rows


def _take(values, key, kind, where):
  """Returns a value of an object; raises UserError if it is of no such type."""
  if key not in values:
    raise UserError(
      f"{where} has no {key}; expected SQuAD's data, paragraphs with context "
      "and qas, these with id and question"
    )
  value = values[key]
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise UserError(
      f"{where} has {shorten(value)}{' as ' * bool(key)}{key}; expected "
      f"{_SPELLED[kind]}"
    )
  return value


def _list(values, key, where):
  """Returns a list of an object, which is checked to be one."""
  return _take(_take({"": values}, "", dict, where), key, list, where)


def _read(source, qa, context, labelled, place):
  qa = _take({"": qa}, "", dict, place)
  kind = int if isinstance(qa.get("id"), int) else str
  number = str(_take(qa, "id", kind, place))
  where = f"{source} question {number}"
  question = _take(qa, "question", str, where)
  is_impossible = "is_impossible" in qa and _take(
    qa, "is_impossible", bool, where
  )
  if is_impossible:
    return Row(where, number, question, context, ())
  if "answers" not in qa:
    if labelled:
      raise UserError(f"{where} has no answers; expected a list")
    return Row(where, number, question, context, None)
  label = []
  for answer in _take(qa, "answers", list, where):
    answer = _take({"": answer}, "", dict, where)
    text = _take(answer, "text", str, where)
    label.append((_take(answer, "answer_start", int, where), text))
  return Row(where, number, question, context, tuple(label))
