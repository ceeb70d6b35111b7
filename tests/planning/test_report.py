"""A plan's text says what a step's time and a run's energy are made of."""

import re

import pytest

from bert_jax.config import default_config
from bert_jax.planning import report as report_lib
from bert_jax.planning import run_plan, search, slices

PARTS = {
  "matrix multiplications": 6e-3,
  "attention kernels": 1e-3,
  "vector work": 2e-3,
  "embedding rows": 0.0,
  "waiting for links": 1e-3,
}


def phase(**changes):
  return {
    "fits": True,
    "mesh": {"data": 16, "fsdp": 1, "model": 1},
    "parameters": 110_000_000,
    "batch_size": 256,
    "max_seq_length": 128,
    "num_steps": 3_600_000,
    "model_flops": 1e12,
    "best_step_seconds": 5e-3,
    "hbm_bytes": 16e9,
    "memory_bytes": {"parameters": 1e9, "total": 1e9},
    "step_seconds": 10e-3,
    "step_seconds_range": [8e-3, 14e-3],
    "mfu": 0.5,
    "sequences_per_second": 25_600,
    "part_seconds": PARTS,
    "kernel_seconds": 1e-3,
    "kernel_roofline_seconds": 0.5e-3,
    "collective_seconds": 3e-3,
    "collective_bytes": {"all-reduce": 2e8},
    "collective_count": {"all-reduce": 50},
    "no_estimate": {"sort": 2, "gather_fusion": 6},
  } | changes


def describe(topology, watts=None):
  candidate = search.Candidate(default_config(), slices.find_slice(topology))
  return run_plan.describe(candidate, {"phase1": phase()}, None, watts)


def test_the_time_of_a_step_is_told_by_what_the_chip_does():
  text = report_lib.format_plan(describe("v3-32"))
  shares = re.findall(r"ms +(\d+)%  ([a-z ]+)[,:]", text)
  assert {name: int(share) for share, name in shares} == {
    "matrix multiplications": 60,
    "attention kernels": 10,
    "vector work": 20,
    "embedding rows": 0,
    "waiting for links": 10,
  }


def test_what_is_unpriced_is_printed_and_so_is_that_nothing_is():
  text = report_lib.format_plan(describe("v3-32"))
  assert "unpriced, taken as 0 ms: 2 sort, 6 gather_fusion" in text
  report = describe("v3-32")
  report["phases"]["phase1"]["no_estimate"] = {}
  text = report_lib.format_plan(report)
  assert "unpriced, taken as 0 ms: nothing" in text


@pytest.mark.parametrize(
  ("topology", "watts", "energy"),
  [
    # Ten hours on 16 chips.
    ("v3-32", None, r"72 kWh .* 16 chips x 10.00 hours x 450 W \(its TDP,"),
    ("v5e:4x4", 200.0, r"32 kWh .* x 200 W \(--watts_per_chip\)"),
    ("v5e:4x4", None, "energy: not estimated.*--watts_per_chip"),
  ],
)
def test_energy_is_chips_times_hours_times_power(topology, watts, energy):
  text = report_lib.format_plan(describe(topology, watts))
  assert re.search(energy, text)
  assert ("rule of thumb" in text) == ("kWh" in text)


def test_slices_that_would_fit_are_told_with_their_chips():
  missing = phase(
    fits=False,
    needed_bytes=20e9,
    would_fit=[("--topology=tpu7x:2x2x2", 9e9), ("model.remat=True", 8e9)],
  )
  report = describe("v3-32") | {"fits": False, "phases": {"phase1": missing}}
  text = report_lib.format_plan(report)
  assert "--topology=tpu7x:2x2x2 (8 chips)" in text
  assert "model.remat=True  7.45 GiB" in text
