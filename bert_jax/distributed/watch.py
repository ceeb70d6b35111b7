"""Ends all processes when one is lost or fails, and names its host.

Every second each process writes its state to the coordination service and reads
the states of the others:

  beat    a counter; where it stands still, the process is lost
  end     (exit status, message) of a process that ends before its work is done

A step on a slice needs every host, so the others would wait for a lost host
forever. JAX has heartbeats too, but reports a lost process by its number, in
forty lines of a C++ stack trace, and aborts (jax 0.10.2). Here every process
prints one line with the host's name and ends with status 1.
"""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
import traceback

from jax.errors import JaxRuntimeError

from bert_jax.errors import UserError

_KEY = "bert_jax/watch"
_PERIOD_SECONDS = 1.0
# How long process 0, in which the coordination service runs, waits for the
# other processes to end; and how long these wait for it to report an error
# that all of them have met.
_GRACE_SECONDS = 5.0


class Interrupted(KeyboardInterrupt):
  """A signal asked one of several processes to end.

  Attributes:
    status: int, with which all of them end.
  """

  def __init__(self, name, status):
    """Names the signal."""
    super().__init__(name)
    self.status = status


class Watch:
  """Watches the other processes in a thread."""

  def __init__(self, client, address, index, names, heartbeat_seconds):
    """Starts the thread.

    Args:
      client: JAX's client of the coordination service.
      address: of that service, "host:port".
      index: int, of this process.
      names: list of str, the hosts' names.
      heartbeat_seconds: silence after which a process is lost.
    """
    self._client = client
    self._index = index
    self._names = names
    self._heartbeat_seconds = heartbeat_seconds
    self._beats = itertools.count()
    self._end = None
    self._exchanging = threading.Lock()
    self._ending = threading.Lock()
    self._closed = threading.Event()
    self._message = self._start_abort_message(address) if index else None
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def close(self):
    """Stops the thread, once all processes are at their end."""
    self._closed.set()
    self._thread.join()
    self._cancel_abort_message()

  def fail(self, error):
    """Ends all processes because of an error in this one; does not return."""
    if isinstance(error, UserError):
      if self._index:  # most likely all met it, and one line is enough
        time.sleep(_GRACE_SECONDS)
      self._end_all(error.status, str(error), self._index == 0)
    if isinstance(error, Interrupted):
      self._end_all(error.status, f"stopped by {error}", self._index == 0)
    if isinstance(error, JaxRuntimeError):
      # A collective fails so when another process is lost. The thread will
      # find out which.
      time.sleep(self._heartbeat_seconds + 2 * _PERIOD_SECONDS)
    line = traceback.format_exception_only(error)[-1].strip()
    line = f"{self._label(self._index)} failed: {line}"
    self._end_all(1, line, True, error=error)

  def _run(self):
    now = time.monotonic()
    states, heard = {}, dict.fromkeys(range(len(self._names)), now)
    while not self._closed.wait(_PERIOD_SECONDS):
      try:
        before, states = states, self._exchange()
      except JaxRuntimeError:  # the service ended with process 0
        self._lose([0])
      now, last = time.monotonic(), now
      slept = now - last > self._heartbeat_seconds / 2  # a machine suspended
      for index in heard:
        if slept or states.get(index) != before.get(index):
          heard[index] = now
      self._follow(states)
      lost = [i for i in heard if now - heard[i] > self._heartbeat_seconds]
      if lost:
        self._lose(lost)

  def _exchange(self):
    """Writes this process's state; returns {index: state} of all."""
    with self._exchanging:
      state = {"beat": next(self._beats), "end": self._end}
      self._client.key_value_set(
        f"{_KEY}/{self._index}", json.dumps(state), allow_overwrite=True
      )
      found = self._client.key_value_dir_get(f"{_KEY}/")
    return {int(k.rsplit("/", 1)[1]): json.loads(v) for k, v in found}

  def _follow(self, states):
    """Ends this process if another one has ended early."""
    for index in sorted(states):
      if index != self._index and states[index]["end"]:
        status, line = states[index]["end"]
        if status == 2:
          line = f"{self._label(index)}: {line}"
        self._end_all(status, line, status == 1 or self._index == 0)

  def _lose(self, lost):
    """Ends this process and those that are left because others are lost."""
    self._end_all(1, self._lost_line(lost), True, lost)

  def _lost_line(self, lost):
    return (
      f"lost {' and '.join(map(self._label, lost))}: not heard of for "
      f"{self._heartbeat_seconds:g} s, or gone; start the command again on "
      "every host, it goes on from the newest checkpoint"
    )

  def _start_abort_message(self, address):
    line = f"error: {self._lost_line([0])}"
    return subprocess.Popen(
      [
        sys.executable,
        "-m",
        "bert_jax.distributed.abort_message",
        address,
        line,
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      start_new_session=True,  # not to be interrupted with this process
    )

  def _cancel_abort_message(self):
    if self._message:
      self._message.communicate(b"no abort")

  def _label(self, index):
    return f"host {index} ({self._names[index]})"

  def _end_all(self, status, line, is_told, lost=(), error=None):
    """Ends this process, and has the others end; does not return.

    Where two threads find a reason, only the first one is printed.

    Args:
      status: int, the exit status of all.
      line: str, why.
      is_told: whether this process prints the line.
      lost: indices of processes that are lost and need no waiting for.
      error: exception whose traceback is printed too, or None.
    """
    self._ending.acquire()  # never released: the process ends here
    if error:
      traceback.print_exception(error)
    if is_told:
      prefix = "error: " if status in (1, 2) else ""
      print(f"{prefix}{line}", file=sys.stderr)
    self._end = [status, line]
    if 0 not in lost:
      with contextlib.suppress(JaxRuntimeError):
        self._tell_others(lost)
    self._cancel_abort_message()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

  def _tell_others(self, lost):
    """Writes that this process ends, for the others to read.

    Process 0 waits until they have: the coordination service ends with it.
    """
    others = set(range(len(self._names))) - {self._index, *lost}
    deadline = time.monotonic() + _GRACE_SECONDS
    states = self._exchange()
    while self._index == 0 and others and time.monotonic() < deadline:
      time.sleep(0.1)
      states = self._exchange()
      others -= {i for i in others if states.get(i, {}).get("end")}
