"""Claims about the plan of a run, one of them on a real compilation."""

import json

import pytest

from bert_jax import plan
from bert_jax.config import default_config
from bert_jax.errors import UserError


def small_config():
  config = default_config()
  config.model.update(
    hidden_size=128,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=512,
    max_position_embeddings=64,
  )
  config.corpus.vocab_size = 1000
  config.phase1.update(
    max_seq_length=64, num_steps=1000, batch_size=16, max_predictions=10
  )
  config.phase2.num_steps = 0
  config.optimizer.warmup_steps = 10
  return config


def phase(**changes):
  return {
    "fits": True,
    "num_steps": 3600,
    "step_seconds": 1.0,
    "step_seconds_range": [0.8, 1.4],
  } | changes


def test_hours_and_money_add_up_over_the_phases():
  phases = {"phase1": phase(), "phase2": phase(num_steps=7200)}
  total = plan._total({"chips": 16, "phases": phases}, 2.0)
  assert total["hours"] == pytest.approx(3)
  assert total["hours_range"] == pytest.approx([2.4, 4.2])
  assert total["money"] == pytest.approx(96)


def test_a_phase_that_does_not_fit_has_no_hours():
  phases = {"phase1": phase(), "phase2": {"fits": False, "why": "too much"}}
  assert plan._total({"chips": 16, "phases": phases}, 2.0) == {"fits": False}


def test_an_unknown_slice_is_refused_before_anything_is_compiled():
  with pytest.raises(UserError, match="v5litepod-16"):
    plan.plan(small_config(), "v5e:1x7")


@pytest.mark.slow
def test_the_real_step_compiles_for_a_slice_that_nobody_holds(tmp_path):
  report = plan.plan(small_config(), "v5litepod-4", 1.0, tmp_path)
  (found,) = report["phases"].values()
  assert (report["topology"], report["chips"]) == ("v5e:2x2", 4)
  assert report["fits"]
  assert found["compute_seconds"] > found["best_step_seconds"] > 0
  low, high = found["step_seconds_range"]
  assert low < found["step_seconds"] < high
  assert report["money"] == pytest.approx(4 * report["hours"])
  # Gradients are reduced, and weights gathered, over the four chips.
  assert found["collective_count"].keys() >= {"all-reduce", "all-gather"}
  # Two float32 moments and the weights, mostly split in four.
  held = found["memory_bytes"]["parameters"]
  assert report["parameters"] < held < 1.3 * report["parameters"]
  assert (tmp_path / "phase1.txt").read_text().startswith("HloModule")
  json.dumps(report)
  assert "fits" in plan.format_report(report)
