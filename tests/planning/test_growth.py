"""Claims about the growth of a step; nothing is compiled here."""

import pytest

from bert_jax.config import default_config
from bert_jax.errors import UserError
from bert_jax.planning import growth, slices

V5E = slices.find_slice("v5e:4x4")


def report(seconds, links=0.0, gib=1.0):
  return {
    "fits": True,
    "step_seconds": seconds + links,
    "sequences_per_second": 256 / (seconds + links),
    "mfu": 0.5,
    "bound_by": "links" if links > seconds else "matrix products",
    "work_part_seconds": {"attention": 0.25 * seconds, "rest": 0.75 * seconds},
    "kernel_seconds": 0.0,
    "row_seconds": 0.0,
    "exposed_collective_seconds": links,
    "memory_bytes": {"activations": gib * 2**30, "total": gib * 2**30},
  }


def test_one_thing_varies_at_a_time():
  sweeps = growth.create_sweeps(default_config(), V5E)
  base = default_config()
  assert [x for x, _, _ in sweeps["chips"]] == [4, 16, 64, 256]
  assert [x for x, _, _ in sweeps["layers"]] == [3, 6, 12, 24]
  lengths = {x: config for x, config, _ in sweeps["length"]}
  assert lengths[512].phase1.max_predictions == 77
  assert lengths[512].phase1.batch_size == base.phase1.batch_size
  jobs = {growth._job_name(*p) for points in sweeps.values() for p in points}
  assert len(jobs) == 13


def test_linear_growth_needs_no_explanation():
  points = [(1, {"a": 2.0, "b": 1.0}), (2, {"a": 4.1, "b": 2.0})]
  assert growth.explain_growth(points, 1) == []
  points = [(4, {"a": 4.0}), (16, {"a": 1.0})]
  assert growth.explain_growth(points, -1) == []


def test_the_part_that_grows_faster_is_blamed():
  points = [(128, {"a": 1.0, "b": 1.0}), (256, {"a": 4.0, "b": 2.0})]
  assert growth.explain_growth(points, 1) == [
    "128 to 256: 3.00 times, linear is 2.00; a (4.00 times) makes 100% of the "
    "difference"
  ]


def test_the_part_that_stays_is_blamed_for_growing_too_little():
  """Twice the batch, and the update of the weights takes no longer."""
  points = [
    (8, {"layers": 1.0, "update": 3.0}),
    (16, {"layers": 2.0, "update": 3.0}),
  ]
  (line,) = growth.explain_growth(points, 1)
  assert "1.25 times, linear is 2.00; update (1.00 times)" in line


def test_links_are_blamed_where_more_chips_do_not_help():
  points = [
    (16, {"work": 4.0, "links": 1.0}),
    (64, {"work": 1.0, "links": 2.0}),
  ]
  (line,) = growth.explain_growth(points, -1)
  assert "0.60 times, linear is 0.25; links (2.00 times)" in line


def test_tables_and_plot_hold_every_point(tmp_path):
  missing = {"fits": False, "needed_bytes": 99 * 2**30}
  measured = {
    "batch": [(64, report(1.0)), (256, report(4.0, gib=4)), (1024, missing)],
    "chips": [
      (16, report(2.0, 0.5)),
      (64, report(0.5, 0.6)),
      (256, UserError("1 row; expected 2")),
    ],
  }
  text = growth.format_growth(measured)
  assert "| 1,024 | does not fit | | | 99.00 | memory |" in text
  assert "| 256 | 1 row; expected 2 | | | | |" in text
  assert "* linear all the way" in text
  assert "* time, 16 to 64: 0.44 times, linear is 0.25" in text
  growth.save_plot(measured, "made up", tmp_path / "growth.png")
  assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("x", [1, 3])
def test_few_layers_do_not_vanish(x):
  config = default_config()
  config.model.num_hidden_layers = x
  sweeps = growth.create_sweeps(config, V5E)
  assert next(n for n, _, _ in sweeps["layers"]) == 1
