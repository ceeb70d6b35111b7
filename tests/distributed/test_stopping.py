"""A common step to stop at, among real processes with real signals."""

import os
import signal
import socket
import subprocess
import sys

import pytest

# Each process dispatches a step every 20 ms, and looks `delay` seconds late
# whether to stop, once.
_PROGRAM = """
import sys, time, jax
from bert_jax.distributed import joining, stopping
delay = float(sys.argv[1])
jax.config.update("jax_platforms", "cpu")
with joining.joined() as hosts:
  stops = stopping.make_stopping(hosts)
  hosts.gather(None)
  print("begun", file=sys.stderr, flush=True)
  for step in range(1, 10**6):
    time.sleep(delay if step == 7 else 0.02)
    number = stops()
    if number:
      print("stopped", step, number, file=sys.stderr, flush=True)
      break
"""


def _start(index, address, delay):
  return subprocess.Popen(
    [sys.executable, "-c", _PROGRAM, str(delay)],
    env=os.environ
    | {
      "JAX_COORDINATOR_ADDRESS": address,
      "JAX_NUM_PROCESSES": "2",
      "JAX_PROCESS_ID": str(index),
    },
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def _free_address():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{s.getsockname()[1]}"


@pytest.mark.parametrize(
  ("number", "got_by"),
  [
    (signal.SIGTERM, 0),
    pytest.param(signal.SIGTERM, 1, marks=pytest.mark.slow),
    pytest.param(signal.SIGINT, 1, marks=pytest.mark.slow),
  ],
)
def test_hosts_stop_at_one_step_however_late_one_of_them_looks(number, got_by):
  """The signal comes while one of them is busy for seconds."""
  address = _free_address()
  both = [_start(0, address, 0.02), _start(1, address, 2.5)]
  for process in both:
    assert process.stderr.readline() == "begun\n"
  both[got_by].send_signal(number)
  ends = [process.communicate(timeout=60)[1].split() for process in both]
  assert [process.returncode for process in both] == [0, 0]
  (word, step, caught), other = ends[0][-3:], ends[1][-3:]
  assert [word, step, caught] == other
  assert (word, int(caught)) == ("stopped", signal.SIGTERM)
