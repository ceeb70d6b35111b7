"""Names a process that is lost, so that none is left waiting for it.

Every second each process notes its state in the coordination service and reads
the others':

  beat    a number that goes up; one that does not is of a process that is lost
  end     (status, line) of a process that ends early, and so must all

A step on a slice can't be done without every host: whoever waits for one that
is gone waits forever. JAX has heartbeats too, but tells of a lost process by
its number, among forty lines of a C++ stack, and aborts (jax 0.10.2); here all
end with one line that has the host's name, and with status 1.
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
# How long the others get to follow before process 0, on which the coordination
# service lives, ends too; and how long they wait for it to speak first.
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
  """A thread that watches the other processes."""

  def __init__(self, client, address, index, names, heartbeat_seconds):
    """Begins to watch.

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
    self._last_words = self._start_last_words(address) if index else None
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def close(self):
    """Ends the watch, after all processes have come to their end."""
    self._closed.set()
    self._thread.join()
    self._silence_last_words()

  def fail(self, error):
    """Ends all processes because of an error in this one; does not return."""
    if isinstance(error, UserError):
      if self._index:  # most likely all made it, and one line is enough
        time.sleep(_GRACE_SECONDS)
      self._end_all(2, str(error), self._index == 0)
    if isinstance(error, Interrupted):
      self._end_all(error.status, f"stopped by {error}", self._index == 0)
    if isinstance(error, JaxRuntimeError):
      # What a process gone looks like to those that compute with it. Let the
      # thread find it.
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
    """Notes this process' state and returns all, a dict by index."""
    with self._exchanging:
      state = {"beat": next(self._beats), "end": self._end}
      self._client.key_value_set(
        f"{_KEY}/{self._index}", json.dumps(state), allow_overwrite=True
      )
      found = self._client.key_value_dir_get(f"{_KEY}/")
    return {int(k.rsplit("/", 1)[1]): json.loads(v) for k, v in found}

  def _follow(self, states):
    """Ends this process if another one has."""
    for index in sorted(states):
      if index != self._index and states[index]["end"]:
        status, line = states[index]["end"]
        if status == 2:
          line = f"{self._label(index)}: {line}"
        self._end_all(status, line, status == 1 or self._index == 0)

  def _lose(self, lost):
    """Ends this process, and all that are left, because others are lost."""
    self._end_all(1, self._lost_line(lost), True, lost)

  def _lost_line(self, lost):
    return (
      f"lost {' and '.join(map(self._label, lost))}: not heard of for "
      f"{self._heartbeat_seconds:g} s, or gone; start the command again on "
      "every host, it goes on from the newest checkpoint"
    )

  def _start_last_words(self, address):
    line = f"error: {self._lost_line([0])}"
    return subprocess.Popen(
      [sys.executable, "-m", "bert_jax.distributed.last_words", address, line],
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      start_new_session=True,  # not to be interrupted with this process
    )

  def _silence_last_words(self):
    if self._last_words:
      self._last_words.communicate(b"bye")

  def _label(self, index):
    return f"host {index} ({self._names[index]})"

  def _end_all(self, status, line, is_told, lost=(), error=None):
    """Ends this process, so that the others follow; does not return.

    Where two threads find a reason, only the first is told.

    Args:
      status: int, the exit status of all.
      line: str, why.
      is_told: whether this process prints the line.
      lost: indices of processes that can't follow.
      error: exception whose traceback says more, or None.
    """
    self._ending.acquire()  # for good: the process ends once
    if error:
      traceback.print_exception(error)
    if is_told:
      prefix = "error: " if status in (1, 2) else ""
      print(f"{prefix}{line}", file=sys.stderr)
    self._end = [status, line]
    if 0 not in lost:
      with contextlib.suppress(JaxRuntimeError):
        self._tell_others(lost)
    self._silence_last_words()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

  def _tell_others(self, lost):
    """Notes the end of this process; process 0 waits for all to have read it.

    The coordination service lives in it.
    """
    others = set(range(len(self._names))) - {self._index, *lost}
    deadline = time.monotonic() + _GRACE_SECONDS
    states = self._exchange()
    while self._index == 0 and others and time.monotonic() < deadline:
      time.sleep(0.1)
      states = self._exchange()
      others -= {i for i in others if states.get(i, {}).get("end")}
