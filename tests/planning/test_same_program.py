"""What `plan` compiles is what `train` runs."""

import dataclasses
import hashlib

import jax
import pytest

from bert_jax.config import active_phases, default_config
from bert_jax.data.tokenization import SPECIAL_TOKENS
from bert_jax.planning import slices, step_plan
from bert_jax.pretraining import run as run_lib
from bert_jax.pretraining import session
from tests import golden


def _config():
  config = default_config()
  config.model.update(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=64,
  )
  config.corpus.vocab_size = 200
  config.phase1.update(max_seq_length=32, batch_size=16, max_predictions=5)
  config.phase2.update(max_seq_length=64, batch_size=16, max_predictions=10)
  return config


def _hash(lowered):
  return hashlib.sha256(lowered.as_text().encode()).hexdigest()


def _corpus(config):
  ordinary = range(config.corpus.vocab_size - len(SPECIAL_TOKENS))
  return dataclasses.replace(
    golden.make_corpus(),
    vocab=[*SPECIAL_TOKENS, *(f"token{i}" for i in ordinary)],
  )


def _hashes_of_train(run, state):
  hashes = {}
  for stage in session.create_stages(run, state):
    (batch,) = stage.abstract_batches
    hashes[stage.name] = _hash(stage.train_step.lower(state, batch))
  assert hashes.keys() == {"phase1", "phase2"}
  return hashes


def _hashes_of_plan(config, devices):
  run = run_lib.create_planned_run(config, devices)
  names = active_phases(config)
  return {name: _hash(step_plan.lower_step(run, name)) for name in names}


def test_plan_lowers_the_programs_that_train_runs():
  """Of both phases, one from shapes and one from a corpus and a real state."""
  config = _config()
  run = run_lib.create_run(config, _corpus(config))
  trained = _hashes_of_train(run, run_lib.create_state(run))
  assert trained == _hashes_of_plan(config, jax.devices())


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"mesh.model": 2}])
def test_plan_lowers_the_programs_that_train_runs_on_tpus(changes):
  """With the attention kernel and packed weights, which only TPUs have."""
  config = _config()
  # Two heads fill the kernel's lanes.
  config.model.hidden_size = 256
  config.update_from_flattened_dict(changes)
  devices = slices.describe_devices(slices.find_slice("v5e:4x4"))
  run = run_lib.create_planned_run(config, devices)
  run = dataclasses.replace(run, corpus=_corpus(config))
  trained = _hashes_of_train(run, run_lib.abstract_sharded_state(run))
  assert trained == _hashes_of_plan(config, devices)
