"""Which steps get a row of metrics and which a checkpoint, on all hosts alike.

A setting says how many steps, another one how many seconds; whichever comes
first. Every host must decide the same without communicating at every step, so
seconds are converted to steps by the speed that host 0 measures now and then.
"""

import jax

# Seconds between two measurements of the speed, after the first ones.
_LOOK_SECONDS = 300


class Intervals:
  """Counts a stage's steps since its last row and its last checkpoint."""

  def __init__(self, config, hosts, step, clock):
    """Starts after a step that has both.

    Args:
      config: the run's settings; `log` and `checkpoint` are used.
      hosts: `Hosts`; all of its processes take the same steps.
      step: int, the last step done.
      clock: `StepClock`.
    """
    self._config = config
    self._hosts = hosts
    self._clock = clock
    self._first = self._last_row = self._last_save = step
    self._row_steps = self._save_steps = None  # not known yet, or no limit
    self._look_at, self._looked = step + 1, None

  def count_step(self, step, outputs):
    """Counts a step; measures the speed if it is time to.

    Args:
      step: int, just dispatched.
      outputs: pytree of arrays that it returned.
    """
    if step != self._look_at or not self._has_seconds():
      return
    jax.block_until_ready(outputs)
    looked, self._looked = self._looked, (step, self._clock.active_seconds)
    self._look_at = self._first + 2 * (step - self._first)
    if looked is None:  # the first step, which fills caches
      return
    steps, seconds = step - looked[0], self._looked[1] - looked[1]
    # At least a microsecond, as a test's clock may stand still.
    speed = max(self._hosts.gather(seconds / steps)[0], 1e-6)
    self._row_steps = _in_steps(self._config.log.every_seconds, speed)
    self._save_steps = _in_steps(self._config.checkpoint.every_seconds, speed)
    in_a_while = step + max(1, int(_LOOK_SECONDS / speed))
    self._look_at = min(self._look_at, in_a_while)

  def _has_seconds(self):
    config = self._config
    return config.log.every_seconds or config.checkpoint.every_seconds

  def row_is_due(self, step):
    """Tells whether a step gets a row of metrics."""
    return step % self._config.log.every_steps == 0 or _is_over(
      step - self._last_row, self._row_steps
    )

  def save_is_due(self, step):
    """Tells whether a step gets a checkpoint."""
    checkpoint = self._config.checkpoint
    return (
      step % checkpoint.every_steps == 0
      or (
        checkpoint.keep_every_steps and step % checkpoint.keep_every_steps == 0
      )
      or _is_over(step - self._last_save, self._save_steps)
    )

  def note_row(self, step):
    """Counts anew from a step that got a row."""
    self._last_row = step

  def note_save(self, step):
    """Counts anew from a step that got a checkpoint."""
    self._last_save = step


def _in_steps(seconds, seconds_per_step):
  """Returns the steps that take so long, or None where 0 means no limit."""
  return max(1, round(seconds / seconds_per_step)) if seconds else None


def _is_over(steps, limit):
  return limit is not None and steps >= limit
