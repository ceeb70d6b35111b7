"""metrics.jsonl: flat rows, valid JSON, no rows of a future undone."""

import json
import struct

import pytest
from etils import epath
from tensorboardX.proto import event_pb2

from bert_jax.errors import UserError
from bert_jax.storage import metric_log, paths


def _write(tmp_path, steps, first_step=0):
  writer = metric_log.MetricWriter(paths.as_path(tmp_path), first_step)
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
  _write(tmp_path, [2], first_step=1)
  assert [r["step"] for r in metric_log.load_rows(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
  "line", [b"{", b"7", b"\xff\xfe", b"null", b'{"split": "train"}', b"[" * 9999]
)
def test_a_line_that_is_no_row_is_told_and_nothing_else_is_lost(
  tmp_path, capsys, line
):
  _write(tmp_path, [1, 2, 3])
  path = tmp_path / "metrics.jsonl"
  lines = path.read_bytes().splitlines()
  path.write_bytes(b"\n".join([lines[0], line, *lines[1:], b""]))
  assert [r["step"] for r in metric_log.load_rows(tmp_path)] == [1, 2, 3]
  assert "line 2 is no row of metrics" in capsys.readouterr().err
  _write(tmp_path, [3], first_step=2)
  assert line in path.read_bytes().splitlines()
  assert [r["step"] for r in metric_log.load_rows(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize(
  "change",
  [
    lambda text: text.replace("0.5", "0.6", 1),
    lambda text: text[text.index("\n") + 1 :],
    lambda text: text[: text.index("\n") + 1],
    lambda text: "",
  ],
)
def test_rows_that_are_not_those_of_the_checkpoint_are_told(
  tmp_path, change, capsys
):
  """Rows after it may come and go, as a resumed run writes them again."""
  path = tmp_path / "metrics.jsonl"
  _write(tmp_path, [1, 2])
  writer = metric_log.MetricWriter(paths.as_path(tmp_path), 2)
  writer.write({"step": 3, "split": "train", "loss": 0.5})
  signature = writer.signature  # as of the checkpoint of step 3
  writer.write({"step": 4, "split": "train", "loss": 0.5})
  writer.close()
  metric_log.tell_changes(tmp_path, signature)
  again = metric_log.MetricWriter(paths.as_path(tmp_path), 3)
  assert again.signature == signature
  again.close()
  metric_log.tell_changes(tmp_path, signature)
  assert not capsys.readouterr().err
  path.write_text(change(path.read_text()))
  metric_log.tell_changes(tmp_path, signature)
  assert "changed or lost" in capsys.readouterr().err


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path):
  (tmp_path / "metrics.jsonl").mkdir()
  with pytest.raises(UserError, match=r"metrics.jsonl is a folder"):
    metric_log.load_rows(tmp_path)


def test_a_disk_that_is_full_for_a_while_stops_nothing(
  tmp_path, monkeypatch, capsys
):
  """The rows are written once there is room."""
  monkeypatch.setattr(metric_log, "RETRY_SECONDS", 0.01)
  append, failures = metric_log.MetricWriter._append, iter(range(3))

  def fail_at_first(writer, lines):
    if next(failures, None) is not None:
      raise OSError(28, "No space left on device")
    append(writer, lines)

  monkeypatch.setattr(metric_log.MetricWriter, "_append", fail_at_first)
  _write(tmp_path, [1, 2, 3])
  assert [r["step"] for r in metric_log.load_rows(tmp_path)] == [1, 2, 3]
  assert capsys.readouterr().out.count("can't be written for now") == 1


def test_the_end_of_a_run_does_not_wait_for_ever(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(metric_log, "RETRY_SECONDS", 0.01)
  monkeypatch.setattr(metric_log, "GIVE_UP_SECONDS", 0.1)

  def fail(writer, lines):
    raise OSError(5, "Input/output error")

  monkeypatch.setattr(metric_log.MetricWriter, "_append", fail)
  _write(tmp_path, [1])
  assert "lacks the last rows" in capsys.readouterr().out


def test_an_object_store_gets_many_rows_in_one_write(gcs, monkeypatch):
  """A bucket takes about one write of an object a second."""
  writes = []
  write_all = metric_log.MetricWriter._write_all

  def count(writer):
    writes.append(len(writer._lines))
    write_all(writer)

  monkeypatch.setattr(metric_log.MetricWriter, "_write_all", count)
  workdir = paths.as_path(gcs.address) / "run"
  _write(workdir, range(1, 101))
  assert [r["step"] for r in metric_log.load_rows(workdir)] == [*range(1, 101)]
  assert len(writes) <= 4 and writes[-1] == 100


def test_what_is_not_finite_becomes_null(tmp_path):
  writer = metric_log.MetricWriter(epath.Path(tmp_path), 0)
  writer.write({"step": 1, "split": "train", "loss": float("nan")})
  writer.close()
  assert metric_log.load_rows(tmp_path)[0]["loss"] is None


def _load_events(path):
  """Reads an event file: records of length, CRC, bytes and CRC."""
  content, events = path.read_bytes(), []
  while content:
    (length,) = struct.unpack_from("<Q", content)
    events.append(event_pb2.Event.FromString(content[12 : 12 + length]))
    content = content[16 + length :]
  return events


def test_tensorboard_gets_the_same_figures(tmp_path):
  _write(tmp_path, [1, 2])
  (path,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
  found = {
    (value.tag, event.step): value.simple_value
    for event in _load_events(path)
    for value in event.summary.value
  }
  assert found == {("train/loss", 1): 1.0, ("train/loss", 2): 0.5}


def test_a_flush_writes_what_a_pause_keeps_back(gcs, monkeypatch):
  """A checkpoint's rows must be there before it: they are not made again."""
  monkeypatch.setattr(metric_log, "PAUSE_SECONDS", 600)
  workdir = paths.as_path(gcs.address) / "run"
  writer = metric_log.MetricWriter(workdir, 0)
  for step in (1, 2, 3):
    writer.write({"step": step, "split": "train"})
    writer.flush()
    steps = [row["step"] for row in metric_log.load_rows(workdir)]
    assert steps == list(range(1, step + 1))
  writer.close()
