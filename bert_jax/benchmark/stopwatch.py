"""Times work that repeats, once it has settled."""

import dataclasses
import statistics
import time

# One reading of the clock is of at least so much work.
_READING_SECONDS = 0.1
_MIN_READINGS = 5


@dataclasses.dataclass(frozen=True)
class Timing:
  """How long something takes.

  Attributes:
    seconds: the median.
    quartiles: (float, float), what a quarter and three quarters stay below.
    repeats: how often it was done.
  """

  seconds: float
  quartiles: tuple
  repeats: int


def time_repeats(repeat, seconds):
  """Times something after two rounds that do not count.

  Args:
    repeat: function of a number n; does the work n times and waits for the end.
    seconds: float, how long to measure; at least five readings are taken.

  Returns:
    `Timing`.
  """
  repeat(1)
  started = time.perf_counter()
  repeat(1)
  once = time.perf_counter() - started
  size = max(1, round(_READING_SECONDS / once))
  readings, end = [], time.perf_counter() + seconds
  while len(readings) < _MIN_READINGS or time.perf_counter() < end:
    started = time.perf_counter()
    repeat(size)
    readings.append((time.perf_counter() - started) / size)
  low, median, high = statistics.quantiles(readings, n=4)
  return Timing(median, (low, high), size * len(readings))
