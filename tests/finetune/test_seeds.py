"""Fine-tuning with several seeds, without the training."""

import os
import types

import pytest

from bert_jax.distributed.hosts import Hosts
from bert_jax.finetune import seeds
from bert_jax.training import signals


@pytest.mark.parametrize("number", signals.NUMBERS)
def test_a_signal_between_two_runs_stops_before_the_second(
  monkeypatch, tmp_path, number
):
  """Nothing is left to save then."""
  trained = []

  def train(run, config, folder, hosts):
    trained.append(config.seed)
    os.kill(os.getpid(), number)
    row = {"step": 1, "split": "eval", "phase": "finetune", "accuracy": 0.5}
    return row, None

  run = types.SimpleNamespace(metric_names=("accuracy",), fingerprint="x")
  fake = types.SimpleNamespace(
    create_fine_tuning=lambda config, init: run,
    with_seed=lambda run, seed: run,
    train=train,
  )
  monkeypatch.setattr(seeds, "run_lib", fake)
  monkeypatch.setattr(seeds, "validate", lambda config: None)
  monkeypatch.setattr(seeds.consistency, "software", lambda config: {})
  with signals.handlers_restored():
    signals.raise_on_signals()
    with pytest.raises(signals.Stopped) as raised:
      config = types.SimpleNamespace(seed=0)
      seeds.finetune(config, tmp_path, None, 3, Hosts())
  assert raised.value.number == number
  assert trained == [0]
