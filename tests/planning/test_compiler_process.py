"""Claims about jobs in processes of their own."""

import os
import signal
import subprocess
import sys
import time

import pytest

from bert_jax.errors import UserError
from bert_jax.planning.compiler_process import run_jobs


def answer(number):
  print("noise of a compiler", file=sys.stderr)
  if number == 0:
    raise UserError("nought; expected a number")
  if number < 0:
    os.abort()  # as a compiler with a fault
  return number + 1


@pytest.fixture(scope="module")
def results():
  jobs = {"good": (1,), "wrong": (0,), "bad": (-1,), "again": (2,)}
  return run_jobs(answer, jobs, "test")


def test_results_come_in_order(results):
  assert list(results) == ["good", "wrong", "bad", "again"]
  assert (results["good"], results["again"]) == (2, 3)


def test_a_users_mistake_comes_back(results):
  assert str(results["wrong"]) == "nought; expected a number"


def test_a_crash_ends_no_other_job_and_names_its_log(results):
  assert isinstance(results["bad"], UserError)
  message = str(results["bad"])
  assert "crashed on bad" in message
  path = message.split("see its log ")[1].split(";")[0]
  with open(path) as f:
    assert "noise of a compiler" in f.read()
  os.remove(path)


def group_is_alive(group):
  """Looks for a process of a group for up to a minute."""
  for _ in range(60):
    try:
      os.killpg(group, 0)
    except ProcessLookupError:
      return False
    time.sleep(1)
  return True


def interrupt(process):
  """As Ctrl-C in a terminal, which the whole group of processes gets."""
  os.killpg(process.pid, signal.SIGINT)


def interrupt_alone(process):
  """As a job sees it that is still starting: the signal misses it."""
  process.send_signal(signal.SIGINT)


@pytest.mark.parametrize(
  "end", [interrupt, interrupt_alone, subprocess.Popen.kill]
)
def test_no_job_outlives_the_command(tmp_path, end):
  program = (
    "import time\n"
    "from bert_jax.planning.compiler_process import run_jobs\n"
    "if __name__ == '__main__':\n"
    "  run_jobs(time.sleep, {i: (600,) for i in range(9)}, 'test')\n"
  )
  (tmp_path / "sleep.py").write_text(program)
  with subprocess.Popen(
    [sys.executable, tmp_path / "sleep.py"],
    env=os.environ | {"PYTHONPATH": os.getcwd()},
    stderr=subprocess.PIPE,
    start_new_session=True,
  ) as process:
    assert b"9 to compile" in process.stderr.readline()
    time.sleep(5)
    end(process)
    assert process.wait(timeout=300) != 0
    assert not group_is_alive(process.pid)


def test_only_progress_reaches_standard_error(capfd):
  assert run_jobs(answer, {"good": (1,)}, "test") == {"good": 2}
  lines = capfd.readouterr().err.splitlines()
  assert all(line.startswith("test: ") for line in lines)
