"""What a run may go on with."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import (
  PHASES,
  active_phases,
  default_config,
  phase_of_step,
)
from bert_jax.errors import UserError
from bert_jax.pretraining import objective, session
from bert_jax.pretraining import run as run_lib


def _check(step, begun, asked):
  """Checks (phase 1, phase 2) step counts against those of a checkpoint."""
  configs = []
  for counts in (begun, asked):
    config = default_config()
    config.phase1.num_steps, config.phase2.num_steps = counts
    configs.append(config)
  run = types.SimpleNamespace(
    config=configs[1], corpus=types.SimpleNamespace(fingerprint="text")
  )
  meta = {"config": configs[0].to_dict(), "corpus_fingerprint": "text"}
  session._check_fits(run, types.SimpleNamespace(step=step), meta)


@pytest.mark.parametrize(
  ("step", "begun", "asked"),
  [
    (10, (24, 12), (30, 12)),  # phase 1 still runs
    (10, (24, 12), (10, 12)),
    (30, (24, 12), (24, 20)),  # phase 2 may always be extended
    (24, (24, 0), (48, 0)),  # a finished run of one phase
    (36, (24, 12), (24, 12)),
  ],
)
def test_a_run_goes_on_with_other_steps_ahead_of_it(step, begun, asked):
  _check(step, begun, asked)


@pytest.mark.parametrize(
  ("step", "begun", "asked", "expected"),
  [
    (30, (24, 12), (28, 12), "expected 24"),
    (36, (24, 12), (20, 16), "expected 24"),
    (24, (24, 12), (30, 12), "expected 24"),
    (20, (24, 12), (10, 12), "expected at least 20"),
  ],
)
def test_steps_that_are_done_can_not_be_undone(step, begun, asked, expected):
  """The examples and the schedule of what is done were of that phase."""
  with pytest.raises(UserError, match=f"phase1.num_steps is .*{expected}"):
    _check(step, begun, asked)


def test_settings_of_the_checkpoint_count_where_config_json_is_gone():
  saved = default_config()
  saved.optimizer.learning_rate = 0.5
  saved.log.every_steps = 7  # changes no number
  run = types.SimpleNamespace(
    config=default_config(), corpus=types.SimpleNamespace(fingerprint="a")
  )
  meta = {"config": saved.to_dict(), "corpus_fingerprint": "a"}
  del meta["config"]["masking"]  # of an older version
  with pytest.raises(UserError, match=r"learning_rate was 0.5, now") as raised:
    session._check_fits(run, types.SimpleNamespace(step=3), meta)
  assert "log.every_steps" not in str(raised.value)
  assert "masking" not in str(raised.value)


def test_another_corpus_is_refused():
  run = types.SimpleNamespace(
    config=default_config(), corpus=types.SimpleNamespace(fingerprint="b")
  )
  meta = {"config": default_config().to_dict(), "corpus_fingerprint": "a"}
  with pytest.raises(UserError, match=r"trained on corpus a; .* found b"):
    session._check_fits(run, types.SimpleNamespace(step=3), meta)


def test_a_step_belongs_to_the_phase_that_makes_it():
  config = default_config()
  config.phase1.num_steps, config.phase2.num_steps = 24, 12
  found = {step: phase_of_step(config, step) for step in (0, 1, 24, 25)}
  assert found == {0: "phase1", 1: "phase1", 24: "phase1", 25: "phase2"}
  config.phase1.num_steps = 0
  assert phase_of_step(config, 1) == "phase2"
  config.phase3.num_steps = 5
  found = [phase_of_step(config, step) for step in (12, 13, 17)]
  assert found == ["phase2", "phase3", "phase3"]


@pytest.mark.parametrize(
  ("step", "name", "num_steps", "expected"),
  [
    (24, "phase1", 25, "expected 24, as step 24"),
    (25, "phase1", 23, "expected 24, as step 25"),
    (20, "phase1", 19, "at least 20, as step 20"),
    (30, "phase2", 5, "at least 6, as step 30"),
    (37, "phase2", 13, "expected 12, as step 37"),
    (37, "phase3", 0, "at least 1, as step 37"),
    (20, "phase1", 21, None),
    (23, "phase2", 99, None),
    (36, "phase2", 12, None),
    (41, "phase3", 6, None),  # a finished run goes on
  ],
)
def test_a_phase_that_is_over_keeps_its_length(step, name, num_steps, expected):
  saved, asked = default_config(), default_config()
  for config in (saved, asked):
    for phase, steps in zip(PHASES, (24, 12, 5), strict=True):
      config[phase].num_steps = steps
  asked[name].num_steps = num_steps
  if expected is None:
    session._check_phase_lengths(saved, asked, step)
    return
  with pytest.raises(UserError, match=f"{name}.num_steps is .*{expected}"):
    session._check_phase_lengths(saved, asked, step)


def test_one_schedule_goes_over_both_phases(monkeypatch):
  """Its decay, of Adam's updates and as reported, ends with phase 2.

  A constant gradient moves a weight by the rate.
  """
  config = default_config()
  config.phase1.num_steps, config.phase2.num_steps = 4, 6
  config.optimizer.update(warmup_steps=2, learning_rate=1.0, weight_decay=0.0)
  run = run_lib.create_planned_run(config, jax.devices())
  expected = [0.5, 1.0, *(np.arange(8, 0, -1) / 8)]
  params = {"kernel": jnp.zeros(1)}
  state = run.optimizer.init(params)
  for rate in expected:
    updates, state = run.optimizer.update(
      {"kernel": jnp.full(1, 0.5)}, state, params, grad_norm=0.5
    )
    np.testing.assert_allclose(updates["kernel"], [-rate], rtol=1e-4)
  monkeypatch.setattr(
    objective.step_lib, "make_train_step", lambda *arguments: arguments
  )
  for name in active_phases(run.config):
    schedule = objective.make_train_step(run, name, None)[3]
    np.testing.assert_allclose(schedule(np.arange(10)), expected, rtol=1e-6)


def test_a_run_of_other_devices_can_be_read_on_those_that_are_here():
  """A pod's mesh on a test's sixteen devices, its batches of 24 rows."""
  config = default_config()
  config.mesh.update(data=32, fsdp=8, model=1)
  config.phase1.batch_size = config.phase2.batch_size = 24
  with pytest.raises(UserError):
    run_lib.create_mesh(config)
  devices = run_lib._fit_to_devices(config, jax.devices())
  assert len(devices) == 8
  assert run_lib.create_mesh(config, devices).size == 8
