"""metrics.jsonl: flat rows, valid JSON, no rows of a future undone."""

import json

from etils import epath

from bert_jax.storage import metric_log


def _write(tmp_path, steps, first_step=0):
  writer = metric_log.MetricWriter(epath.Path(tmp_path), first_step)
  for step in steps:
    row = {
      "step": step,
      "split": "train",
      "loss": 1.0 / step,
      "phase": "phase1",
    }
    writer.write(row)
  writer.close()


def test_rows_have_every_field_and_nothing_nested(tmp_path):
  _write(tmp_path, [1])
  (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
  row = json.loads(line)
  assert tuple(row) == metric_log.FIELDS
  assert row["loss"] == 1.0 and row["mfu"] is None


def test_rows_after_the_restored_step_go(tmp_path):
  _write(tmp_path, [1, 2, 3, 4])
  _write(tmp_path, [3], first_step=2)
  assert [r["step"] for r in metric_log.load_rows(tmp_path)] == [1, 2, 3]


def test_a_row_cut_short_by_a_kill_is_left_out(tmp_path):
  _write(tmp_path, [1, 2])
  path = tmp_path / "metrics.jsonl"
  path.write_text(path.read_text()[:-20])
  assert [r["step"] for r in metric_log.load_rows(tmp_path)] == [1]


def test_what_is_not_finite_becomes_null(tmp_path):
  writer = metric_log.MetricWriter(epath.Path(tmp_path), 0)
  writer.write({"step": 1, "split": "train", "loss": float("nan")})
  writer.close()
  assert metric_log.load_rows(tmp_path)[0]["loss"] is None


def test_tensorboard_gets_the_same_figures(tmp_path):
  _write(tmp_path, [1, 2])
  assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
