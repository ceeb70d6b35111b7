"""The training command as users meet it: processes, kills and signals."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from bert_jax.storage import metric_log
from tests import texts

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = (
  "--config=configs/quickstart.py",
  "--config.model.num_hidden_layers=1",
  "--config.model.hidden_size=32",
  "--config.model.intermediate_size=64",
  "--config.model.max_position_embeddings=64",
  "--config.corpus.vocab_size=200",
  "--config.corpus.eval_fraction=0.1",
  "--config.phase1.max_seq_length=32",
  "--config.phase1.max_predictions=5",
  "--config.phase1.batch_size=8",
  "--config.phase1.num_steps=24",
  "--config.phase2.max_seq_length=64",
  "--config.phase2.max_predictions=10",
  "--config.phase2.batch_size=4",
  "--config.phase2.num_steps=12",
  "--config.optimizer.warmup_steps=4",
  "--config.checkpoint.every_steps=7",
  "--config.eval.every_steps=10",
  "--config.eval.num_batches=2",
  "--config.log.every_steps=1",
)
NUM_STEPS = 36
pytestmark = pytest.mark.slow


def _command(module, workdir, *arguments):
  return [
    sys.executable,
    "-m",
    f"bert_jax.{module}",
    f"--workdir={workdir}",
    *arguments,
  ]


def _environment(workdir):
  """Compiled programs are kept beside the workdirs, to save minutes."""
  return os.environ | {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
    "PYTHONUNBUFFERED": "1",
    "JAX_COMPILATION_CACHE_DIR": str(workdir.parents[1] / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }


def _run(module, workdir, *arguments):
  """Runs a command to its end."""
  return subprocess.run(
    _command(module, workdir, *arguments),
    cwd=ROOT,
    env=_environment(workdir),
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


def _start_training(workdir, *arguments):
  return subprocess.Popen(
    _command("train", workdir, *SETTINGS, *arguments),
    cwd=ROOT,
    env=_environment(workdir),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _wait_for_step(process, workdir, step):
  """Waits until a step is in metrics.jsonl."""
  deadline = time.monotonic() + 240
  while time.monotonic() < deadline and process.poll() is None:
    rows = metric_log.load_rows(workdir)
    if rows and rows[-1]["step"] >= step:
      return
    time.sleep(0.02)
  raise AssertionError(f"no step {step}: {process.communicate()[0][-2000:]}")


def _losses(workdir):
  """Returns {(split, step): losses} of a run, to the last bit."""
  fields = ("loss", "mlm_loss", "nsp_loss", "grad_norm", "mlm_accuracy")
  rows = metric_log.load_rows(workdir)
  assert len({(r["split"], r["step"]) for r in rows}) == len(rows)
  return {(r["split"], r["step"]): [r[f] for f in fields] for r in rows}


@pytest.fixture(scope="module", name="source")
def _source(tmp_path_factory):
  path = tmp_path_factory.mktemp("text") / "text.txt"
  texts.write_text(path, texts.make_documents(60, 12))
  return f"--config.corpus.source={path}"


@pytest.fixture(scope="module", name="finished")
def _finished(tmp_path_factory, source):
  """A run that nobody disturbed."""
  workdir = tmp_path_factory.mktemp("finished") / "run"
  done = _run("train", workdir, *SETTINGS, source)
  assert done.returncode == 0, done.stderr
  return workdir


def test_a_run_leaves_what_the_design_names(finished):
  names = {path.name for path in finished.iterdir()}
  assert names >= {
    "config.json",
    "vocab.txt",
    "corpus",
    "checkpoints",
    "metrics.jsonl",
    "tensorboard",
  }
  assert (finished / "checkpoints" / str(NUM_STEPS)).is_dir()
  rows = metric_log.load_rows(finished)
  train = [r for r in rows if r["split"] == "train"]
  assert [r["step"] for r in train] == list(range(1, NUM_STEPS + 1))
  assert [r["phase"] for r in train] == ["phase1"] * 24 + ["phase2"] * 12
  assert train[-1]["loss"] < train[0]["loss"]
  held_out = [r["step"] for r in rows if r["split"] == "eval"]
  assert held_out == [10, 20, 24, 30, 36]
  assert json.loads((finished / "config.json").read_text())["seed"] == 0


def test_a_run_killed_at_any_moment_goes_on_as_if_nothing_had_been(
  tmp_path, source, finished
):
  """kill -9 before the first checkpoint, in phase 1, and in phase 2."""
  workdir = tmp_path / "run"
  for step in (3, 17, 27):
    process = _start_training(workdir, source)
    _wait_for_step(process, workdir, step)
    process.kill()
    process.communicate()
  done = _run("train", workdir, *SETTINGS, source)
  assert done.returncode == 0, done.stderr
  assert _losses(workdir) == _losses(finished)


def test_sigterm_saves_the_step_it_is_at_and_exits_cleanly(
  tmp_path, source, finished
):
  workdir = tmp_path / "run"
  process = _start_training(
    workdir,
    source,
    "--config.checkpoint.every_steps=1000",
    "--config.eval.every_steps=1000",
  )
  _wait_for_step(process, workdir, 12)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 0, output
  seconds = re.search(
    r"stopped by SIGTERM; state is saved, (.*) s after the signal", output
  )
  assert 0 <= float(seconds[1]) < 60
  (saved,) = (int(p.name) for p in (workdir / "checkpoints").iterdir())
  assert saved == metric_log.load_rows(workdir)[-1]["step"] < NUM_STEPS
  done = _run("train", workdir, *SETTINGS, source)
  assert f"continuing after step {saved}" in done.stdout
  found = {k: v for k, v in _losses(finished).items() if k in _losses(workdir)}
  assert _losses(workdir) == found


def test_sigterm_before_the_first_step_ends_with_one_line(tmp_path, source):
  """While text is prepared or a program compiled there is nothing to save."""
  process = _start_training(tmp_path / "run", source)
  line = process.stdout.readline()
  process.send_signal(signal.SIGTERM)
  output = line + process.communicate(timeout=120)[0]
  assert process.returncode == 0, output
  assert "train: stopped by SIGTERM; start again to go on" in output
  assert "Traceback" not in output


def test_a_workdir_with_a_bracket_is_refused_before_any_work(tmp_path, source):
  done = _run("train", tmp_path / "run[1]", *SETTINGS, source)
  assert done.returncode == 2
  assert "can't hold checkpoints" in done.stderr
  assert len(done.stderr.splitlines()) == 1
  assert not (tmp_path / "run[1]" / "corpus").exists()


def test_a_finished_run_says_so(finished, source):
  before = _losses(finished)
  done = _run("train", finished, *SETTINGS, source)
  assert done.returncode == 0
  assert "is finished: all 36 steps are done" in done.stdout
  assert _losses(finished) == before


def test_a_changed_setting_is_named_and_refused(finished, source):
  done = _run(
    "train", finished, *SETTINGS, source, "--config.model.num_hidden_layers=3"
  )
  assert done.returncode == 2
  assert "model.num_hidden_layers was 1, now 3" in done.stderr
  assert "Traceback" not in done.stderr


def test_evaluate_repeats_the_figures_of_the_run(finished):
  """The last held-out row, from another process, on the same masks."""
  done = _run("evaluate", finished)
  assert done.returncode == 0, done.stderr
  by_phase = {r["phase"]: r for r in map(json.loads, done.stdout.splitlines())}
  last = metric_log.load_rows(finished)[-1]
  whole = ("mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy")
  parts = ("mlm_loss_masked", "mlm_accuracy_rare", "nsp_accuracy_long")
  for field in whole + parts:
    assert by_phase["phase2"][field] == pytest.approx(last[field], rel=1e-6)
  assert by_phase["phase1"]["max_seq_length"] == 32


def test_the_best_checkpoint_is_kept_and_evaluated(finished):
  """Of the last phase, beside the three latest; read again by its name."""
  held_out = [r for r in metric_log.load_rows(finished) if r["split"] == "eval"]
  held_out = [r for r in held_out if r["phase"] == held_out[-1]["phase"]]
  best = min(held_out, key=lambda row: row["loss"])
  kept = {int(p.name) for p in (finished / "checkpoints").iterdir()}
  assert kept == {30, 35, 36, best["step"]}
  done = _run("evaluate", finished, "--step=best")
  assert done.returncode == 0, done.stderr
  by_phase = {r["phase"]: r for r in map(json.loads, done.stdout.splitlines())}
  found = by_phase[best["phase"]]
  assert found["step"] == best["step"]
  assert found["loss"] == pytest.approx(best["loss"], rel=1e-6)
  wrong = _run("evaluate", finished, "--step=newest")
  assert wrong.returncode == 2
  assert "--step is 'newest'; expected a number or best" in wrong.stderr


def test_a_second_run_in_the_same_workdir_is_refused(tmp_path, source):
  workdir = tmp_path / "run"
  process = _start_training(workdir, source)
  _wait_for_step(process, workdir, 1)
  second = _run("train", workdir, *SETTINGS, source)
  process.kill()
  process.communicate()
  assert second.returncode == 2
  assert f"is in use by process {process.pid}" in second.stderr


def test_a_finished_run_can_be_extended(finished, source, tmp_path):
  """More steps in phase 2: the same weights go on, on one more schedule."""
  workdir = tmp_path / "run"
  subprocess.run(["cp", "-r", finished, workdir], check=True)
  done = _run(
    "train", workdir, *SETTINGS, source, "--config.phase2.num_steps=14"
  )
  assert done.returncode == 0, done.stderr
  assert metric_log.load_rows(workdir)[-1]["step"] == 38


def test_a_loss_that_is_not_finite_ends_the_run_with_one_line(tmp_path, source):
  done = _run(
    "train",
    tmp_path / "run",
    *SETTINGS,
    source,
    "--config.optimizer.learning_rate=1e30",
    "--config.optimizer.weight_decay=0.9",
  )
  assert done.returncode == 2
  assert "not finite" in done.stderr and "learning_rate" in done.stderr
  assert "Traceback" not in done.stderr
