"""What counts as a step's time, and as waiting for its batch."""

import time

import jax
import jax.numpy as jnp
import pytest

from bert_jax.training.step_clock import StepClock


class Outputs:
  """An array of a device that is busy, or no longer."""

  def __init__(self, is_done):
    self._is_done = is_done

  def block_until_ready(self):
    """Returns at once."""
    return self

  def is_ready(self):
    """Tells what it was made to tell."""
    return self._is_done


def _run(outputs, wait, pause=0.0):
  """Makes a first step and four that count; returns the rates."""
  clock = StepClock(8, 16, 100.0, 1000.0)
  for _ in range(5):
    with clock.waiting():
      time.sleep(wait)
    clock.count_step(outputs)
    time.sleep(0.02)
    with clock.paused():
      time.sleep(pause)
  return clock.rates(0.5)


def test_a_wait_counts_when_the_devices_are_idle():
  rates = _run(Outputs(is_done=True), wait=0.02)
  assert rates["data_wait"] == pytest.approx(0.5, abs=0.15)


def test_a_wait_beside_work_costs_nothing():
  rates = _run(Outputs(is_done=False), wait=0.02)
  assert rates["data_wait"] == 0


def test_rates_leave_out_the_first_step_and_pauses():
  rates = _run(Outputs(is_done=True), wait=0.0, pause=0.2)
  # Four steps, and the work of the first one after its end.
  assert rates["sequences_per_second"] == pytest.approx(4 * 8 / 0.1, rel=0.3)
  assert rates["tokens_per_second"] == pytest.approx(
    rates["sequences_per_second"] * 16 * 0.5
  )
  assert rates["mfu"] == pytest.approx(
    100.0 / 1000.0 * rates["sequences_per_second"] / 8
  )


def test_a_pause_begins_when_the_steps_under_way_have_ended():
  """Else the time of these steps is left out and speed is too high."""

  class Slow(Outputs):
    def block_until_ready(self):
      if not self._is_done:
        time.sleep(0.2)
        self._is_done = True
      return self

  clock = StepClock(8, 16, 100.0, 1000.0)
  clock.count_step(Outputs(is_done=True))
  clock.count_step(Slow(is_done=False))
  before = clock.active_seconds
  with clock.paused():
    time.sleep(0.3)
  assert clock.active_seconds - before == pytest.approx(0.2, abs=0.05)
  rates = clock.rates(0.5)
  assert rates["sequences_per_second"] == pytest.approx(8 / 0.2, rel=0.2)


def test_arrays_of_a_step_say_whether_it_is_done():
  """As the clock asks them: true once the program has ended."""
  outputs = jax.jit(jnp.cos)(jnp.ones(8))
  assert jax.block_until_ready(outputs).is_ready()


def test_a_cpu_finishes_a_step_before_it_gets_the_next():
  slow = jax.jit(lambda x: jax.lax.fori_loop(0, 50, lambda _, y: y @ x, x))
  x = jnp.ones((1000, 1000)) / 1000
  clock = StepClock(8, 16, 100.0, 1000.0)
  for _ in range(2):
    outputs = slow(x)
    clock.count_step(outputs)
  assert not outputs.is_ready()
  clock.let_finish()
  assert outputs.is_ready()
