"""A part of the table of corruptions, as anyone can make it."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_no_damage_of_what_all_commands_read_is_silent_or_a_traceback(tmp_path):
  """The settings, the vocabulary, and what says how a checkpoint was made."""
  files = "config|vocab|init.json|corpus/report|checkpoints/6/meta/metadata"
  done = subprocess.run(
    [sys.executable, "-m", "tests.corruptions", f"--only={files}"],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "TMPDIR": str(tmp_path)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr[-3000:]
  lines = done.stdout.splitlines()
  rows = [line for line in lines if line.startswith("| `")]
  assert len(rows) == 5
  # A changed byte is noticed by whatever reads the file.
  assert "| `config.json` | error |" in rows[0]
