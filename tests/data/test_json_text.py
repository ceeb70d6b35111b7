"""JSON of any kind: what Python's reader finds, or a ValueError."""

import json

import pytest

from bert_jax.data.json_text import parse_json


@pytest.mark.parametrize(
  "value", [{"a": [1, 2.5, None, True, "\u00e9\U0001f600"]}, [], "x", 10**400]
)
def test_values_are_those_of_the_json_module(value):
  assert parse_json(json.dumps(value)) == value
  assert parse_json(json.dumps(value, ensure_ascii=False)) == value


def test_half_characters_become_question_marks():
  found = parse_json(r'{"\ud800a": ["\udfff", "\ud83d\ude00"]}')
  assert found == {"?a": ["?", "\U0001f600"]}


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("[" * 100_000, "nested too deep"),
    ("9" * 5_000, "more than 4,300 digits"),
    ("{", "not JSON: Expecting property name .*line 1, column 2"),
    ("", "not JSON"),
  ],
)
def test_anything_else_is_one_reason(text, reason):
  with pytest.raises(ValueError, match=reason):
    parse_json(text)
