"""What an error of storage proves."""

import json

import pytest

from bert_jax.storage import damage


def _wrap(error):
  """As orbax wraps what tensorstore raises."""
  try:
    raise Exception("Encountered error while reading array index") from error
  except Exception as e:
    return e


@pytest.mark.parametrize(
  ("error", "kind"),
  [
    (FileNotFoundError(2, "No such file"), damage.DAMAGED),
    (IsADirectoryError(21, "Is a directory"), damage.DAMAGED),
    (json.JSONDecodeError("Expecting value", "", 0), damage.DAMAGED),
    (ValueError("DATA_LOSS: Error reading ..."), damage.DAMAGED),
    (ValueError("OUT_OF_RANGE: Error reading ..."), damage.DAMAGED),
    (_wrap(ValueError("NOT_FOUND: Error reading ...")), damage.DAMAGED),
    (KeyError("value_type"), damage.DAMAGED),
    (ValueError("UNAVAILABLE: HTTP response code: 503"), damage.UNREADABLE),
    (_wrap(ValueError("DEADLINE_EXCEEDED: ...")), damage.UNREADABLE),
    (ValueError("PERMISSION_DENIED: ..."), damage.UNREADABLE),
    (ValueError("503 Service Unavailable"), damage.UNREADABLE),
    (OSError(5, "Input/output error"), damage.UNREADABLE),
    (TimeoutError("timed out"), damage.UNREADABLE),
    (PermissionError(13, "Permission denied"), damage.UNREADABLE),
    (ConnectionResetError(104, "reset"), damage.UNREADABLE),
    (RuntimeError("503 Service Unavailable"), damage.UNREADABLE),
    (_wrap(OSError(5, "Input/output error")), damage.UNREADABLE),
    (Exception("anything else"), damage.UNREADABLE),
    (MemoryError(), damage.UNREADABLE),
  ],
)
def test_only_missing_and_undecodable_files_are_damage(error, kind):
  assert damage.classify(error) == kind
