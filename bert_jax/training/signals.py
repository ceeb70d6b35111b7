"""SIGTERM and SIGINT outside of the training loop, which has its own handlers.

Before the first step, and between two runs of a command, there is nothing to
save: a signal ends the command at once, with one line.
"""

import contextlib
import signal
import time

NUMBERS = (signal.SIGTERM, signal.SIGINT)


class Stopped(KeyboardInterrupt):
  """A signal asked a command to stop.

  Attributes:
    number: of the signal.
  """

  def __init__(self, number):
    """Names the signal."""
    super().__init__(signal.Signals(number).name)
    self.number = number


def raise_on_signals():
  """Makes both signals raise `Stopped` from now on."""

  def stop(number, frame):
    raise Stopped(number)

  for number in NUMBERS:
    signal.signal(number, stop)


@contextlib.contextmanager
def handlers_restored():
  """Restores at the end the handlers that there were at the beginning."""
  before = {number: signal.getsignal(number) for number in NUMBERS}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


@contextlib.contextmanager
def deferred():
  """Postpones signals until what is done inside, such as a save, has ended.

  Raises:
    Stopped: at the end, if a signal came.
  """
  caught = []
  with handlers_restored():
    for number in NUMBERS:
      signal.signal(number, lambda number, frame: caught.append(number))
    yield
  if caught:
    raise Stopped(caught[0])


def note_times(times):
  """Makes the present handlers note when a signal came.

  Args:
    times: list that gets `time.monotonic()` of each signal.
  """

  def timed(handler):
    def note(number, frame):
      times.append(time.monotonic())
      handler(number, frame)

    return note

  for number in NUMBERS:
    handler = signal.getsignal(number)
    if callable(handler):
      signal.signal(number, timed(handler))
