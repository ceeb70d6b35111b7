"""The ways in which a store fails, each for chosen requests."""

import dataclasses
import re
import threading

# What is done to a request instead of, before, or after the work:
# answers with an error of the service
STATUS = "status"
# waits before it is served
DELAY = "delay"
# reads half of the body, stores nothing, and closes the connection
CUT_WRITE = "cut_write"
# sends half of the answer's body and closes the connection
CUT_READ = "cut_read"
# does the work, and closes the connection without an answer
NO_ANSWER = "no_answer"


@dataclasses.dataclass
class Fault:
  """One way to fail.

  Attributes:
    kind: one of the constants above.
    pattern: regular expression, searched in "METHOD /path?query" with the
      path's percents decoded.
    times: how many requests it is done to, or None for all.
    status: for `STATUS`.
    seconds: for `DELAY`.
  """

  kind: str
  pattern: str = ""
  times: int | None = 1
  status: int = 503
  seconds: float = 0.0


class Faults:
  """Those that a server is asked for."""

  def __init__(self):
    """Begins without any."""
    self._faults = []
    self._lock = threading.Lock()

  def add(self, fault):
    """Takes one more `Fault`."""
    with self._lock:
      self._faults.append(fault)

  def clear(self):
    """Ends all of them."""
    with self._lock:
      self._faults.clear()

  def pending(self):
    """Returns the faults that are still to be done."""
    with self._lock:
      return [fault for fault in self._faults if fault.times]

  def take(self, line):
    """Returns the first `Fault` for a request, which is counted, or None."""
    with self._lock:
      for fault in self._faults:
        if fault.times != 0 and re.search(fault.pattern, line):
          fault.times = None if fault.times is None else fault.times - 1
          return fault
    return None
