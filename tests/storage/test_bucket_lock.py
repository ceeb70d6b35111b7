"""One run at a time in a bucket, through the protocol of Google's storage."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from bert_jax.errors import UserError
from bert_jax.storage import paths, workdir
from tests.gcs_server import faults

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]
_HOLDER = """
import sys, time
from bert_jax.storage import paths, workdir
with workdir.run_lock(paths.as_path(sys.argv[1])):
  print("held", flush=True)
  time.sleep(60)
"""


@pytest.fixture(name="folder")
def _folder(gcs):
  return paths.as_path(f"{gcs.address}/run")


def _hold(folder):
  """Starts a process that holds the lock."""
  process = subprocess.Popen(
    [sys.executable, "-c", _HOLDER, str(folder)],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "held\n"
  return process


def _end(process):
  process.kill()
  process.communicate()


def test_a_second_run_is_refused_while_the_first_lives(gcs, folder):
  holder = _hold(folder)
  with pytest.raises(UserError, match=f"in use by process {holder.pid} on "):
    workdir.run_lock(folder).__enter__()
  assert holder.poll() is None
  _end(holder)
  with workdir.run_lock(folder):  # its lock has expired
    assert "run/.lock" in gcs.bucket.names()
    time.sleep(3)  # longer than it lasts unless it is renewed
  assert "run/.lock" not in gcs.bucket.names()


def test_an_answer_that_was_lost_takes_no_lock_away(gcs, folder):
  """The client writes a second time, and finds its own lock."""
  gcs.faults.add(faults.Fault(faults.NO_ANSWER, "^POST .*upload", times=1))
  with workdir.run_lock(folder):
    gcs.faults.add(faults.Fault(faults.NO_ANSWER, "^POST .*upload", times=1))
    time.sleep(1)
  assert "run/.lock" not in gcs.bucket.names()


def test_a_run_whose_lock_was_taken_ends(gcs, folder):
  holder = _hold(folder)
  paths.write_file(folder / ".lock", "somebody else")
  _, errors = holder.communicate(timeout=20)
  assert holder.returncode == 1
  assert f"another process took {folder} over" in errors
