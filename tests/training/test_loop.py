"""The loop around the step: rows, evaluations, checkpoints and signals."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import default_config
from bert_jax.sharding import mesh as mesh_lib
from bert_jax.training import loop as loop_lib
from bert_jax.training.train_state import TrainState


class Writer:
  """Keeps the rows."""

  def __init__(self):
    self.rows = []

  def write(self, row):
    """Keeps a row."""
    self.rows.append(row)

  def flush(self):
    """Has nothing to wait for."""


@pytest.fixture(autouse=True)
def _restore_signals():
  """The loop listens to signals; the tests after it should not."""
  numbers = signal.SIGTERM, signal.SIGINT
  before = [signal.getsignal(number) for number in numbers]
  yield
  for number, handler in zip(numbers, before, strict=True):
    signal.signal(number, handler)


def _state(step=0):
  return TrainState(jnp.int32(step), {}, (), jnp.int32(0))


def _train(
  step=0,
  num_steps=12,
  on_step=lambda step: None,
  is_evaluated=True,
  broken_steps=(),
  on_save=lambda step: None,
  **settings,
):
  """Runs a loop whose loss is its step.

  Returns:
    (rows, [(saved step, held-out row)], [(step, figures added later)], the
    signal).
  """
  config = default_config()
  config.update_from_flattened_dict(
    {"eval.every_steps": 5, "log.every_seconds": 0.0} | settings
  )
  mesh = mesh_lib.create_mesh(config.mesh, jax.devices()[:1])
  broken = jnp.array([*broken_steps, -1])

  @jax.jit
  def train_step(state, batch):
    del batch
    step = state.step + 1
    loss = jnp.where((step == broken).any(), jnp.nan, step.astype(jnp.float32))
    one = jnp.float32(1)
    metrics = {"loss": loss, "grad_norm": one, "fill": one}
    metrics |= {"learning_rate": -loss, "skipped_steps": 0 * one}
    return state.replace(step=step), metrics

  def iterate_batches(first):
    for number in range(first + 1, num_steps + 1):
      on_step(number)
      yield {"x": np.zeros((1, 1), np.float32)}

  saved, figures, writer = [], [], Writer()

  def save(state, evaluated):
    saved.append((int(state.step), evaluated))
    on_save(int(state.step))

  stage = loop_lib.Stage(
    name="stage",
    end=num_steps,
    batch_size=1,
    max_seq_length=1,
    flops_per_step=1.0,
    train_step=train_step,
    abstract_batches=[{"x": jax.ShapeDtypeStruct((1, 1), jnp.float32)}],
    iterate_batches=iterate_batches,
    evaluate=lambda params: {"loss": 0.5},
  )
  loop = loop_lib.Loop(
    config,
    mesh,
    writer,
    save,
    lambda step, row: figures.append((step, row)),
    lambda row: f"loss {row['loss']}",
    is_evaluated=is_evaluated,
  )
  _, stopped_by = loop_lib.train(loop, [stage], _state(step))
  return writer.rows, saved, figures, stopped_by


def _losses(rows, split="train"):
  return {r["step"]: r["loss"] for r in rows if r["split"] == split}


def test_a_row_is_the_mean_since_the_row_before():
  rows, *_ = _train(**{"log.every_steps": 4, "eval.every_steps": 100})
  assert _losses(rows) == {4: 2.5, 8: 6.5, 12: 10.5}


def test_the_learning_rate_of_a_row_is_that_of_its_step():
  rows, *_ = _train(**{"log.every_steps": 4, "eval.every_steps": 100})
  assert [r["learning_rate"] for r in rows if r["split"] == "train"] == [
    -4.0,
    -8.0,
    -12.0,
  ]


def test_a_step_without_an_update_does_not_spoil_the_mean():
  rows, *_ = _train(
    broken_steps=(2, 9, 10, 11, 12),
    **{"log.every_steps": 4, "eval.every_steps": 100},
  )
  found = _losses(rows)
  assert found[4] == pytest.approx((1 + 3 + 4) / 3)
  assert found[8] == 6.5
  assert np.isnan(found[12])


def test_a_checkpoint_ends_a_row_so_that_a_resumed_run_has_the_same():
  settings = {"log.every_steps": 4, "checkpoint.every_steps": 6}
  whole, saved, *_ = _train(**settings)
  assert [step for step, _ in saved] == [5, 6, 10, 12]
  resumed, *_ = _train(step=6, **settings)
  later = {step: loss for step, loss in _losses(whole).items() if step > 6}
  assert _losses(resumed) == later


def _send_sigterm(at):
  def send(step):
    if step == at:
      os.kill(os.getpid(), signal.SIGTERM)

  return send


def test_a_signal_on_an_evaluation_step_saves_without_evaluating():
  rows, saved, _, stopped_by = _train(on_step=_send_sigterm(5))
  assert stopped_by == signal.SIGTERM
  assert saved == [(5, None)]
  assert _losses(rows, "eval") == {}


def test_a_signal_during_the_last_save_is_heard():
  """Else it would be lost between two runs of one command."""
  _, saved, _, stopped_by = _train(on_save=_send_sigterm(12))
  assert stopped_by == signal.SIGTERM and saved[-1][0] == 12


def test_handlers_are_what_they_were_after_the_loop():
  before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
  _train()
  after = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
  assert after == before


def test_the_evaluation_left_out_is_made_at_the_next_start():
  rows, _, figures, _ = _train(step=5, is_evaluated=False)
  assert list(_losses(rows, "eval")) == [5, 10, 12]
  ((step, row),) = figures
  assert step == 5 and row["loss"] == 0.5


def test_it_is_made_for_the_last_step_too():
  rows, saved, figures, _ = _train(step=12, is_evaluated=False)
  assert list(_losses(rows, "eval")) == [12]
  assert [step for step, _ in figures] == [12] and saved == []


def test_a_step_that_needs_no_evaluation_gets_none():
  rows, _, figures, _ = _train(step=7, is_evaluated=False)
  assert list(_losses(rows, "eval")) == [10, 12] and figures == []
