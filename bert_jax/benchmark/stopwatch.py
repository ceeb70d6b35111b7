"""Times repeated work, after a warm-up."""

import dataclasses
import statistics
import time

# Each reading times repeats that take about this long together.
_READING_SECONDS = 0.1
_MIN_READINGS = 5


@dataclasses.dataclass(frozen=True)
class Timing:
  """Seconds that one repeat takes.

  Attributes:
    seconds: median of the readings.
    quartiles: (float, float), first and third quartile of the readings.
    repeats: number of repeats that were timed.
  """

  seconds: float
  quartiles: tuple
  repeats: int


def time_repeats(repeat, seconds):
  """Times a function, after two repeats of warm-up.

  Args:
    repeat: function of n; does the work n times and waits for its end.
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
