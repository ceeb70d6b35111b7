"""Signals outside of the loop: heard at once, or when a save has ended."""

import os
import signal
import time

import pytest

from bert_jax.training import signals


@pytest.fixture(autouse=True)
def _restored():
  with signals.handlers_restored():
    yield


def test_a_signal_before_the_first_step_raises():
  signals.raise_on_signals()
  with pytest.raises(signals.Stopped, match="SIGTERM") as e:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
  assert e.value.number == signal.SIGTERM


def test_a_signal_during_a_save_is_heard_after_it():
  signals.raise_on_signals()
  is_saved = False
  with pytest.raises(signals.Stopped, match="SIGINT"), signals.deferred():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.05)
    is_saved = True
  assert is_saved
  with pytest.raises(signals.Stopped, match="SIGTERM"):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


def test_the_time_of_a_signal_is_noted_beside_what_is_done_with_it():
  caught, times = [], []
  signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
  signals.note_times(times)
  before = time.monotonic()
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(0.05)
  assert caught == [signal.SIGTERM]
  assert len(times) == 1 and before <= times[0] <= time.monotonic()
