"""Speed of the training steps, without compilation, evaluation and saving."""

import contextlib
import time

import jax


class StepClock:
  """Measures steps between two reports.

  The first step, which fills caches, evaluation and saving are not counted.
  """

  def __init__(self, batch_size, max_seq_length, flops_per_step, peak_flops):
    """Starts the clock.

    Args:
      batch_size: sequences a step, over all devices.
      max_seq_length: slots a sequence.
      flops_per_step: model FLOPs, over all devices.
      peak_flops: FLOP/s of all devices together, or None if not known.
    """
    self._batch_size = batch_size
    self._max_seq_length = max_seq_length
    self._flops_per_step = flops_per_step
    self._peak_flops = peak_flops
    self._outputs = None
    self._all_paused_seconds = 0.0
    self.seconds_per_step = 0.0
    self._reset()

  def _reset(self):
    self._started = time.monotonic()
    self._steps = 0
    self._waited_seconds = 0.0
    self._paused_seconds = 0.0

  @property
  def active_seconds(self):
    """Monotonic seconds without those of pauses; for differences only."""
    return time.monotonic() - self._all_paused_seconds

  def count_step(self, outputs):
    """Counts a step that was dispatched; waits for the first one.

    Args:
      outputs: pytree of arrays that the step returned.
    """
    is_first, self._outputs = self._outputs is None, outputs
    if is_first:
      jax.block_until_ready(outputs)
      self._reset()
    else:
      self._steps += 1

  def let_finish(self):
    """Waits for the step before, if it runs on a CPU.

    A step that is queued there takes memory of its own already: BERT-base, 8 x
    128 in bfloat16, took 1.35 s alone and 1.8 s with another behind it (two
    cores, 21 November 2026). Other devices are not kept waiting for theirs.
    """
    if jax.default_backend() == "cpu":
      jax.block_until_ready(self._outputs)

  @contextlib.contextmanager
  def waiting(self):
    """Times the wait for a batch.

    The wait is not counted if the devices are still busy with the step before
    when the batch is there: then it costs nothing.
    """
    started = time.monotonic()
    yield
    if all(x.is_ready() for x in jax.tree.leaves(self._outputs)):
      self._waited_seconds += time.monotonic() - started

  @contextlib.contextmanager
  def paused(self):
    """Stops the clock inside, once the steps under way have ended."""
    jax.block_until_ready(self._outputs)
    started = time.monotonic()
    yield
    seconds = time.monotonic() - started
    self._paused_seconds += seconds
    self._all_paused_seconds += seconds

  def rates(self, fill):
    """Reports the speed since the last report, and begins anew.

    Args:
      fill: share of the slots that hold real tokens, or None if not known.

    Returns:
      dict of sequences_per_second, tokens_per_second (real tokens), mfu (model
      FLOPs utilisation) and data_wait (at most such a share of the time was
      spent waiting for batches while the devices had nothing to do); None where
      nothing was measured.
    """
    seconds = time.monotonic() - self._started - self._paused_seconds
    steps, waited = self._steps, self._waited_seconds
    self._reset()
    if not steps:
      return {}
    self.seconds_per_step = seconds / steps
    rate = steps * self._batch_size / seconds
    achieved = self._flops_per_step / self.seconds_per_step
    return {
      "sequences_per_second": rate,
      "tokens_per_second": fill and rate * self._max_seq_length * fill,
      "mfu": achieved / self._peak_flops if self._peak_flops else None,
      "data_wait": waited / seconds,
    }
