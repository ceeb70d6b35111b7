"""Starts commands as users do: in a process of their own, on one CPU device.

Compiled programs are shared with all processes of the run of pytest (see
conftest.py), which saves minutes.
"""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def command(module, *arguments):
  """Returns what starts `python -m bert_jax.<module>`, a list of str."""
  return [sys.executable, "-m", f"bert_jax.{module}", *map(str, arguments)]


def environment(**settings):
  """Returns the environment of a command; `settings` are added to it."""
  return (
    os.environ
    | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    | {name: str(value) for name, value in settings.items()}
  )


def run(module, *arguments):
  """Runs a command to its end.

  Returns:
    `subprocess.CompletedProcess`, its outputs as text.
  """
  return _run_to_end(command(module, *arguments), environment())


def run_program(program, **settings):
  """Runs Python code to its end; same result as `run`."""
  return _run_to_end([sys.executable, "-c", program], environment(**settings))


def output_of(module, *arguments):
  """Runs a command that must succeed; returns what it printed."""
  done = run(module, *arguments)
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


def start(module, *arguments):
  """Starts a command; returns its `subprocess.Popen`, both outputs as one."""
  return subprocess.Popen(
    command(module, *arguments),
    cwd=ROOT,
    env=environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _run_to_end(arguments, environ):
  return subprocess.run(
    arguments,
    cwd=ROOT,
    env=environ,
    capture_output=True,
    text=True,
    timeout=900,
    check=False,
  )
