"""Runs a command as on several hosts, with processes of this machine.

Starts the same command several times, each with CPU devices of its own. Process
0 prints as usual; a line that another process prints to standard error has its
number in front.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

from absl import flags

from bert_jax.distributed import environment, joining

# How long the other processes get to end by themselves after one failed: as
# long as it may take them to find that it is lost, and more.
_PATIENCE_SECONDS = 120


def define_flags():
  """Defines `--rehearse_hosts=N` and `--rehearse_devices=N`."""
  flags.DEFINE_integer(
    "rehearse_hosts",
    None,
    "Start so many processes here, as a pod does (1 with --rehearse_devices).",
    1,
  )
  flags.DEFINE_integer(
    "rehearse_devices",
    None,
    "CPU devices of each of them (4 with --rehearse_hosts).",
    1,
  )


def rehearse_if_asked():
  """Starts the processes that the flags ask for, and ends with their status.

  Returns at once where the flags ask for none, and in the processes started.
  """
  num_hosts = flags.FLAGS.rehearse_hosts
  num_devices = flags.FLAGS.rehearse_devices
  is_child = environment.VARIABLES[0] in os.environ
  if (num_hosts or num_devices) and not is_child:
    sys.exit(_rehearse(num_hosts or 1, num_devices or 4))


def _rehearse(num_hosts, num_devices):
  """Runs this command as a pod would.

  Args:
    num_hosts: how many processes.
    num_devices: devices of each.

  Returns:
    exit status: 0 if all ended with 0, else the first other one; 128 plus the
    signal's number for a process killed.
  """
  address = f"127.0.0.1:{_free_port()}"
  processes = [
    _start(index, num_hosts, num_devices, address) for index in range(num_hosts)
  ]
  threads = [
    threading.Thread(target=_show, args=(index, process))
    for index, process in enumerate(processes)
    if index
  ]
  for thread in threads:
    thread.start()

  def pass_on(number, frame):
    del frame
    for process in processes:
      if process.poll() is None:
        process.send_signal(number)

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, pass_on)
  try:
    status = _wait(processes)
  finally:
    for process in processes:
      process.kill()
  for thread in threads:
    thread.join()
  return status


def _start(index, num_hosts, num_devices, address):
  identity = (address, str(num_hosts), str(index))
  variables = dict(zip(environment.VARIABLES, identity, strict=True)) | {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(num_devices),
    # A program that waits for other processes occupies a thread. With several
    # dispatched at once, none may be left for the program the others wait for.
    "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false",
    joining.PARENT: str(os.getpid()),
  }
  return subprocess.Popen(
    [sys.executable, *sys.orig_argv[1:]],
    env=os.environ | variables,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.DEVNULL if index else None,
    stderr=subprocess.PIPE if index else None,
    start_new_session=True,  # the terminal's Ctrl-C comes through here
  )


def _free_port():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def _show(index, process):
  for line in process.stderr:
    text = line.decode(errors="replace").rstrip()
    sys.stderr.write(f"host {index}: {text}\n")


def _wait(processes):
  """Waits for all; returns the first status that is not 0, or 0."""
  running, status, deadline = dict(enumerate(processes)), 0, None
  while running:
    time.sleep(0.1)
    for index, process in list(running.items()):
      if process.poll() is None:
        continue
      del running[index]
      if process.returncode and not status:
        status = process.returncode
        deadline = time.monotonic() + _PATIENCE_SECONDS
        _tell(index, status)
    if deadline and time.monotonic() > deadline:
      for process in running.values():
        process.kill()
  return 128 - status if status < 0 else status


def _tell(index, status):
  if status < 0:
    name = signal.Signals(-status).name
    print(f"host {index} was ended by {name}", file=sys.stderr, flush=True)
