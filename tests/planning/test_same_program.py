"""What `plan` compiles is what `train` runs."""

import dataclasses
import hashlib

import jax

from bert_jax.config import default_config
from bert_jax.data.tokenization import SPECIAL_TOKENS
from bert_jax.planning import step_plan
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


def test_plan_lowers_the_programs_that_train_runs():
  """Of both phases, one from shapes and one from a corpus and a real state."""
  config = _config()
  ordinary = range(config.corpus.vocab_size - len(SPECIAL_TOKENS))
  corpus = dataclasses.replace(
    golden.make_corpus(),
    vocab=[*SPECIAL_TOKENS, *(f"token{i}" for i in ordinary)],
  )
  run = run_lib.create_run(config, corpus)
  state = run_lib.create_state(run)
  trained = {}
  for stage in session.create_stages(run, state):
    (batch,) = stage.abstract_batches
    trained[stage.name] = _hash(stage.train_step.lower(state, batch))
  planned_run = run_lib.create_planned_run(config, jax.devices())
  planned = {
    name: _hash(step_plan.lower_step(planned_run, name)) for name in trained
  }
  assert trained.keys() == {"phase1", "phase2"}
  assert planned == trained
