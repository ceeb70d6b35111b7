"""Rows and checkpoints by steps or by seconds, the same on every host."""

import itertools

import pytest

from bert_jax.config import default_config
from bert_jax.training.intervals import Intervals


class Clock:
  """Takes so many seconds a step."""

  def __init__(self):
    self.active_seconds = 0.0


class Hosts:
  """Two hosts of which this is one; the first measured another speed."""

  def __init__(self, speeds):
    self._speeds = speeds

  def gather(self, value):
    """Returns what each host measured."""
    return self._speeds or [value]


def _due(seconds_per_step, num_steps, speeds=(), **settings):
  """Runs a loop's clock; returns the steps with a row and with a checkpoint."""
  config = default_config()
  config.update_from_flattened_dict(
    {"log.every_steps": 10**9, "checkpoint.every_steps": 10**9} | settings
  )
  clock = Clock()
  intervals = Intervals(config, Hosts(speeds), 0, clock)
  rows, saves = [], []
  for step in range(1, num_steps + 1):
    clock.active_seconds += seconds_per_step
    intervals.count_step(step, ())
    if intervals.save_is_due(step):
      intervals.note_save(step)
      saves.append(step)
    if intervals.row_is_due(step):
      intervals.note_row(step)
      rows.append(step)
  return rows, saves


def test_seconds_decide_where_steps_are_slow():
  rows, saves = _due(
    0.5, 200, **{"log.every_seconds": 10.0, "checkpoint.every_seconds": 40.0}
  )
  assert rows == list(range(20, 201, 20))
  assert saves == [80, 160]


def test_steps_decide_where_they_are_fast():
  rows, saves = _due(
    0.01,
    100,
    **{"log.every_steps": 20, "checkpoint.every_steps": 50},
  )
  assert rows == [20, 40, 60, 80, 100]
  assert saves == [50, 100]


def test_defaults_on_a_pod_write_neither_every_second_nor_never():
  """12 ms a step: the recipe's defaults make a row in ten seconds."""
  config = default_config()
  rows, saves = _due(
    0.012,
    30_000,
    **{
      "log.every_steps": config.log.every_steps,
      "checkpoint.every_steps": config.checkpoint.every_steps,
    },
  )
  gaps = [0.012 * (b - a) for a, b in itertools.pairwise(rows)]
  assert min(gaps) > 1 and max(gaps) <= 12
  assert 0.012 * (saves[1] - saves[0]) == pytest.approx(120)


def test_every_host_follows_the_speed_of_the_first():
  settings = {"log.every_seconds": 10.0, "checkpoint.every_seconds": 40.0}
  first = _due(0.5, 200, (0.5, 0.7), **settings)
  assert first == _due(0.7, 200, (0.5, 0.7), **settings)


def test_zero_seconds_are_no_limit():
  rows, saves = _due(
    100.0, 50, **{"log.every_seconds": 0.0, "checkpoint.every_seconds": 0.0}
  )
  assert rows == saves == []


def test_kept_steps_are_saved_wherever_they_come():
  _, saves = _due(0.01, 100, **{"checkpoint.keep_every_steps": 30})
  assert saves == [30, 60, 90]


@pytest.mark.parametrize("pause", [0.0, 5.0])
def test_a_slower_machine_is_noticed(pause):
  """Twice as slow from step 1,000 on: rows come at half as many steps."""
  config = default_config()
  config.log.every_steps = 10**9
  clock = Clock()
  intervals = Intervals(config, Hosts(()), 0, clock)
  rows = []
  for step in range(1, 4001):
    clock.active_seconds += 0.1 if step <= 1000 else 0.2 + pause
    intervals.count_step(step, ())
    if intervals.row_is_due(step):
      intervals.note_row(step)
      rows.append(step)
  assert rows[1] - rows[0] == 100
  assert rows[-1] - rows[-2] < 100
