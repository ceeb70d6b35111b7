"""How the processes of a run end when one of them fails or is lost."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

# A watch whose process ends for real, with a coordination service that keeps
# the states of all processes in a dict.
_PROGRAM = """
import json, time
from jax.errors import JaxRuntimeError
from bert_jax.distributed import watch
from bert_jax.errors import StorageError, UserError

class Client:
  states = {"bert_jax/watch/1": json.dumps({"beat": 0, "end": None})}

  def key_value_set(self, key, value, allow_overwrite):
    self.states[key] = value

  def key_value_dir_get(self, prefix):
    return list(self.states.items())

watch._PERIOD_SECONDS, watch._GRACE_SECONDS = 0.05, 0.1
found = watch.Watch(Client(), "127.0.0.1:1", 0, ["here", "there"], 2)
time.sleep(0.5)  # the other host was lost before the error
try:
  raise ERROR
except Exception as e:
  found.fail(e)
"""


def _fail_with(error):
  """Returns (status, standard error) of host 0 of two, host 1 being silent."""
  done = subprocess.run(
    [sys.executable, "-c", _PROGRAM.replace("ERROR", error)],
    capture_output=True,
    text=True,
    check=False,
  )
  return done.returncode, done.stderr


def test_the_lost_host_is_named_without_a_traceback():
  """What computes with it fails in C++ at the same time."""
  status, errors = _fail_with("JaxRuntimeError('Gloo: connection closed')")
  assert status == 1
  (line,) = errors.splitlines()
  assert line.startswith("error: lost host 1 (there): not heard of for 2 s")


def test_another_error_is_told_with_its_traceback_and_the_host():
  status, errors = _fail_with("ZeroDivisionError('one')")
  assert status == 1
  assert "Traceback" in errors
  assert errors.endswith(
    "error: host 0 (here) failed: ZeroDivisionError: one\n"
  )


@pytest.mark.parametrize(
  ("error", "status"), [("UserError('x')", 2), ("StorageError('x')", 1)]
)
def test_a_line_for_the_user_ends_all_with_its_status(error, status):
  assert _fail_with(error) == (status, "error: x\n")
