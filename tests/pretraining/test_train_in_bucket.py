"""A whole run at gs://, through the protocol: kills, outages, other hosts."""

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest
import transformers

from bert_jax.storage import metric_log, paths
from bert_jax.storage.checkpoints import COMMIT_FILE
from tests import texts
from tests.gcs_server import faults
from tests.pretraining.test_train import NUM_STEPS, SETTINGS

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(name="command")
def _command(gcs, tmp_path, monkeypatch):
  """Makes the arguments and settings of a process that runs a command."""
  texts.write_text(tmp_path / "text.txt", texts.make_documents(60, 12))
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  source = f"--config.corpus.source={tmp_path / 'text.txt'}"

  def make(name, workdir=None, *arguments):
    """Returns what `subprocess` takes."""
    has_settings = name in ("prepare", "train")
    return [
      sys.executable,
      "-m",
      f"bert_jax.{name}",
      f"--workdir={workdir or gcs.address + '/run'}",
      *((*SETTINGS, source) if has_settings else ()),
      *arguments,
    ]

  return make


def _run(arguments):
  done = subprocess.run(
    arguments, cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout


def _kill_when(condition, arguments):
  """Starts a command and kills it at the first moment that fits."""
  process = subprocess.Popen(
    arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
  )
  deadline = time.monotonic() + 600
  try:
    while not condition():
      assert process.poll() is None, process.communicate()[0][-3000:]
      assert time.monotonic() < deadline
      time.sleep(0.02)
  finally:
    process.kill()
    process.communicate()


def _new_host(monkeypatch, tmp_path, number):
  """Lets the next process find an empty disk."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"host{number}"))


def _losses(workdir):
  fields = ("loss", "mlm_loss", "nsp_loss", "grad_norm", "mlm_accuracy")
  rows = metric_log.load_rows(workdir)
  assert len({(r["split"], r["step"]) for r in rows}) == len(rows)
  return {(r["split"], r["step"]): [r[f] for f in fields] for r in rows}


def _is_saved(bucket, step):
  return f"run/checkpoints/{step}/{COMMIT_FILE}" in bucket.names()


def _is_half_saved(bucket, step):
  folder = f"run/checkpoints/{step}/"
  names = [name for name in bucket.names() if name.startswith(folder)]
  return bool(names) and not _is_saved(bucket, step)


def test_a_run_in_a_bucket_is_killed_moved_and_exported(
  gcs, command, tmp_path, monkeypatch
):
  """The bits are those of an undisturbed run on a disk."""
  _run(command("train", tmp_path / "disk"))

  _new_host(monkeypatch, tmp_path, 1)
  has_tokens = lambda: (tmp_path / "host1").exists()  # noqa: E731
  _kill_when(has_tokens, command("prepare"))
  assert "run/corpus/manifest.json" not in gcs.bucket.names()
  _run(command("prepare"))
  assert "run/corpus/manifest.json" in gcs.bucket.names()

  # The checkpoint of step 14 never gets its arrays; some other requests of
  # each kind fail, and all are slow.
  stuck = faults.Fault(faults.DELAY, "uploadType.*/14/", None, seconds=1e4)
  gcs.faults.add(stuck)
  for pattern in ("^GET", "^GET .*alt=media", "^GET .*prefix", "^POST"):
    gcs.faults.add(faults.Fault(faults.STATUS, pattern))
  gcs.faults.add(faults.Fault(faults.CUT_WRITE, "^POST"))
  gcs.faults.add(faults.Fault(faults.DELAY, "", times=None, seconds=0.003))
  _new_host(monkeypatch, tmp_path, 2)
  _kill_when(lambda: _is_saved(gcs.bucket, 7), command("train"))
  _kill_when(lambda: _is_half_saved(gcs.bucket, 14), command("train"))
  gcs.faults.clear()
  evaluated = _run(command("evaluate"))
  # Saved before step 14: 7, and 10 with its held-out figures.
  assert {json.loads(row)["step"] for row in evaluated.splitlines()} == {10}

  _new_host(monkeypatch, tmp_path, 3)
  _kill_when(lambda: _is_saved(gcs.bucket, 28), command("train"))
  output = _run(command("train"))
  assert "continuing after step" in output

  evaluated = _run(command("evaluate"))
  assert evaluated == _run(command("evaluate", tmp_path / "disk"))
  _run(command("export", None, f"--output={gcs.address}/export"))
  for path in paths.as_path(f"{gcs.address}/export").iterdir():
    paths.copy_file(path, tmp_path / "export" / path.name)
  model = transformers.BertForPreTraining.from_pretrained(tmp_path / "export")
  assert model.config.num_hidden_layers == 1
  assert _losses(f"{gcs.address}/run") == _losses(tmp_path / "disk")


def test_two_hosts_train_in_one_bucket(gcs, command, tmp_path, monkeypatch):
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  hosts = ("--rehearse_hosts=2", "--rehearse_devices=2")
  _run(command("train", None, *hosts))
  assert f"run/checkpoints/{NUM_STEPS}/{COMMIT_FILE}" in gcs.bucket.names()
  assert [n for n in gcs.bucket.names() if n.startswith("run/compiled/")]
  assert "is finished" in _run(command("train", None, *hosts))
  _run(command("export", None, f"--output={tmp_path / 'export'}"))
  assert os.path.exists(tmp_path / "export" / "config.json")


def test_a_preflight_is_a_command(gcs, command):
  output = _run(command("preflight"))
  assert output.endswith(f"preflight: {gcs.address}/run can hold a run\n")
  gcs.rights -= {"storage.buckets.get"}
  done = subprocess.run(
    command("preflight"), cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 2
  (line,) = (x for x in done.stderr.splitlines() if x.startswith("error: "))
  assert "storage.buckets.get is missing" in line
  assert "Traceback" not in done.stderr
