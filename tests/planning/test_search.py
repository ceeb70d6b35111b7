"""Claims about the search for meshes; nothing is compiled here."""

import re

import pytest

from bert_jax.config import default_config
from bert_jax.errors import UserError
from bert_jax.planning import report as report_lib
from bert_jax.planning import run_plan, search, slices

V5E = slices.find_slice("v5e:4x4")


def phase(**changes):
  return {
    "fits": True,
    "num_steps": 3600,
    "step_seconds": 1.0,
    "step_seconds_range": [0.8, 1.4],
  } | changes


def meshes(config, planned=V5E):
  found = search.list_candidates(config, planned)
  return {tuple(c.mesh.values()) for c in found}


def test_meshes_are_all_that_divide():
  """BERT-base has 12 heads: two or four parts, and no eight."""
  found = meshes(default_config())
  assert {(16, 1, 1), (1, 16, 1), (4, 4, 1), (8, 1, 2), (1, 4, 4)} <= found
  assert all(d * f * m == 16 for d, f, m in found)
  assert {m for _, _, m in found} == {1, 2, 4}


def test_a_batch_that_does_not_divide_needs_the_model_axis():
  config = default_config()
  config.phase1.batch_size = 8
  assert {m for _, _, m in meshes(config)} == {2, 4}


def test_no_mesh_at_all_is_a_users_mistake():
  config = default_config()
  config.phase1.batch_size = 1
  with pytest.raises(UserError, match=r"\[1, 256\] sequences.*v5e:4x4"):
    search.search(config, [V5E], 3)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"mesh.data": 3}, "config.mesh is 3x1x1.*product of 16"),
    ({"mesh.model": 16}, "config.mesh.model is 16.*12 attention heads"),
    ({"phase2.batch_size": 40}, "phase2.batch_size gives 40 rows"),
  ],
)
def test_what_does_not_fit_the_slice_is_told_before_anything_compiles(
  monkeypatch, changes, message
):
  def fail(*args):
    raise AssertionError("a process was started")

  monkeypatch.setattr(search, "run_jobs", fail)
  config = default_config()
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=message):
    run_plan.plan(config, V5E)
  report = run_plan.describe(
    search.Candidate(config, V5E),
    *search.plan_candidates([search.Candidate(config, V5E)]),
    None,
  )
  text = report_lib.format_comparison({"candidates": [report], "left_out": 0})
  assert re.search(r"v5e:4x4 \(v5litepod-16, 16 chips\) .*" + message, text)


def test_two_devices_a_chip():
  config = default_config()
  candidate = search.Candidate(config, slices.find_slice("v3-32"))
  assert candidate.mesh == {"data": 32, "fsdp": 1, "model": 1}
  assert "--config.mesh.data=32 --config.mesh.fsdp=1" in candidate.overrides


def test_hours_and_money_add_up_over_the_phases():
  phases = {"phase1": phase(), "phase2": phase(num_steps=7200)}
  total = search.total(phases, 16, 2.0)
  assert total["hours"] == pytest.approx(3)
  assert total["hours_range"] == pytest.approx([2.4, 4.2])
  assert total["money"] == pytest.approx(96)


def test_a_phase_that_does_not_fit_has_no_hours():
  phases = {"phase1": phase(), "phase2": {"fits": False}}
  assert search.total(phases, 16, 2.0) == {"fits": False}


def missing(candidate, made):
  mesh = candidate.mesh
  memory = {"activations_and_temporaries": made}
  return phase(
    fits=False,
    mesh=mesh,
    parameters=0,
    batch_size=256,
    grad_accumulation=candidate.config.optimizer.grad_accumulation,
    hbm_bytes=16e9,
    memory_bytes=memory,
    needed_bytes=made,
  )


def test_memory_is_saved_only_where_a_candidate_does_not_fit(monkeypatch):
  """The first mesh needs four micro-batches, or remat; another crashes."""
  rounds = []

  def plan_candidates(candidates, hlo_dir):
    assert hlo_dir is None
    rounds.append(
      [
        (c.mesh, c.config.optimizer.grad_accumulation, c.config.model.remat)
        for c in candidates
      ]
    )
    results = []
    for c in candidates:
      passes = c.config.optimizer.grad_accumulation
      if c.mesh["model"] == 2:
        found = UserError("the compiler crashed")
      elif c.mesh["data"] == 16 and passes == 1 and not c.config.model.remat:
        found = missing(c, 60e9)
      else:
        found = phase()
      results.append({"phase1": found})
    return results

  monkeypatch.setattr(search, "plan_candidates", plan_candidates)
  found, left_out = search.search(default_config(), [V5E], 3)
  assert [len(r) for r in rounds] == [3, 2]
  plainest = {"data": 16, "fsdp": 1, "model": 1}
  assert rounds[1] == [(plainest, 4, False), (plainest, 1, True)]
  assert "--config.model.remat=True" in found[-1][0].overrides
  assert len(found) == 5
  assert left_out == len(search.list_candidates(default_config(), V5E)) - 3


def test_more_micro_batches_of_a_large_batch_are_tried(monkeypatch):
  """4,096 x 128 on 16 devices: 32,768 tokens each, or four times 8,192."""
  tried = []

  def plan_candidates(candidates, hlo_dir):
    assert hlo_dir is None
    tried.extend(c.config.optimizer.grad_accumulation for c in candidates)
    return [{"phase1": phase()} for _ in candidates]

  monkeypatch.setattr(search, "plan_candidates", plan_candidates)
  config = default_config()
  config.phase1.batch_size = 4096
  config.phase2.num_steps = 0
  search.search(config, [V5E], 1)
  assert tried == [1, 4]
  # Phase 2 has 8,192 tokens a device as it is.
  tried.clear()
  config.phase2.num_steps = 10
  search.search(config, [V5E], 1)
  assert tried == [1]
