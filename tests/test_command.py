"""What every command makes of its surroundings: streams and storage."""

import subprocess
import sys

import pytest

_PROGRAM = """
import os, sys
from absl import flags
from bert_jax import command

def main(argv):
  BODY

command.define_workdir_flag()
command.run(main)
"""


def _start(body, **streams):
  """Starts a command whose main function is `body`."""
  program = _PROGRAM.replace("BODY", body)
  return subprocess.Popen(
    [sys.executable, "-c", program, "--workdir=/nowhere"], text=True, **streams
  )


def test_a_reader_that_goes_away_is_one_line():
  """As of `| head -1`."""
  body = "while True: print('a row', flush=True)"
  process = _start(body, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  assert process.stdout.readline() == "a row\n"
  process.stdout.close()
  assert process.stderr.read() == "error: standard output was closed\n"
  process.stderr.close()
  assert process.wait() == 1


def test_closed_streams_are_not_taken_by_files(tmp_path):
  """C++ would print into a checkpoint."""
  path = tmp_path / "file"
  body = (
    f"print('x'); print('y', file=sys.stderr); f = open({str(path)!r}, 'w'); "
    "os.write(1, b'1'); os.write(2, b'2'); f.write('content')"
  )
  command = [sys.executable, "-c", _PROGRAM.replace("BODY", body)]
  status = subprocess.run(
    ["bash", "-c", '"$@" >&- 2>&-', "bash", *command], check=False
  ).returncode
  assert (status, path.read_text()) == (0, "content")


@pytest.mark.parametrize(
  ("error", "line"),
  [
    ("OSError(28, 'No space left on device')", "no room left on the disk of"),
    ("PermissionError(13, 'no', '/nowhere/x')", "/nowhere/x can't be used"),
    ("FileNotFoundError(2, 'x')", "/nowhere is gone"),
  ],
)
def test_an_error_of_storage_is_one_line(error, line):
  process = _start(f"raise {error}", stderr=subprocess.PIPE)
  _, errors = process.communicate()
  assert process.returncode == 2
  assert errors.startswith("error: ") and errors.count("\n") == 1
  assert line in errors
