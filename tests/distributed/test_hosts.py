"""Several hosts, played by real processes with real signals and real kills."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from bert_jax.storage import metric_log
from tests import texts

ROOT = pathlib.Path(__file__).parents[2]
NUM_STEPS = 60
SETTINGS = (
  "--config=configs/quickstart.py",
  "--config.model.num_hidden_layers=1",
  "--config.model.hidden_size=32",
  "--config.model.num_attention_heads=8",
  "--config.model.intermediate_size=64",
  "--config.model.max_position_embeddings=32",
  "--config.model.hidden_dropout_prob=0.1",
  "--config.corpus.vocab_size=200",
  "--config.corpus.eval_fraction=0.1",
  "--config.phase1.max_seq_length=32",
  "--config.phase1.max_predictions=5",
  "--config.phase1.batch_size=16",
  f"--config.phase1.num_steps={NUM_STEPS}",
  "--config.phase2.num_steps=0",
  "--config.optimizer.warmup_steps=4",
  "--config.checkpoint.every_steps=10",
  "--config.eval.every_steps=30",
  "--config.eval.num_batches=2",
  "--config.log.every_steps=1",
)
HEARTBEAT_SECONDS = 15
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", name="shared")
def _shared(tmp_path_factory):
  """A folder with the text, compiled programs, and no TensorFlow."""
  folder = tmp_path_factory.mktemp("shared")
  texts.write_text(folder / "text.txt", texts.make_documents(60, 12))
  # Its import takes longer than everything else here.
  (folder / "tensorflow.py").write_text("raise ModuleNotFoundError\n")
  return folder


def _start(shared, workdir, *arguments, **environment):
  """Starts training in the background."""
  return subprocess.Popen(
    [
      *(sys.executable, "-m", "bert_jax.train", f"--workdir={workdir}"),
      *SETTINGS,
      f"--config.corpus.source={shared / 'text.txt'}",
      *arguments,
    ],
    cwd=ROOT,
    env=os.environ
    | {
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": f"{ROOT}:{shared}",
      "JAX_COMPILATION_CACHE_DIR": str(shared / "compiled"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "BERT_JAX_HEARTBEAT_SECONDS": str(HEARTBEAT_SECONDS),
    }
    | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _end(process):
  """Waits for a process; returns (status, stdout, stderr)."""
  output, errors = process.communicate(timeout=600)
  return process.returncode, output, errors


def _rehearse(shared, workdir, hosts, devices, *arguments):
  """Starts a rehearsal; what is None is left to the command."""
  sizes = {"hosts": hosts, "devices": devices}
  given = [f"--rehearse_{key}={n}" for key, n in sizes.items() if n]
  return _start(shared, workdir, *given, *arguments)


def _wait_for_step(process, workdir, step):
  deadline = time.monotonic() + 500
  while time.monotonic() < deadline and process.poll() is None:
    rows = metric_log.load_rows(workdir)
    if rows and rows[-1]["step"] >= step:
      return
    time.sleep(0.02)
  process.terminate()
  raise AssertionError(f"no step {step}: {_end(process)}")


def _host(rehearsal, index):
  """Returns the process id of one host of a rehearsal."""
  wanted = f"JAX_PROCESS_ID={index}".encode()
  children = pathlib.Path(f"/proc/{rehearsal.pid}/task").glob("*/children")
  for child in " ".join(path.read_text() for path in children).split():
    variables = pathlib.Path(f"/proc/{child}/environ").read_bytes()
    if wanted in variables.split(b"\0"):
      return int(child)
  raise AssertionError(f"host {index} is not there")


def _losses(workdir):
  """Returns {(split, step): losses} of a run that has each row once."""
  fields = ("loss", "mlm_loss", "nsp_loss")
  rows = metric_log.load_rows(workdir)
  assert len({(r["split"], r["step"]) for r in rows}) == len(rows)
  return {(r["split"], r["step"]): [r[f] for f in fields] for r in rows}


def _assert_same_losses(workdir, expected):
  found, expected = _losses(workdir), _losses(expected)
  assert found.keys() == expected.keys()
  for key, losses in expected.items():
    np.testing.assert_allclose(found[key], losses, rtol=1e-5, err_msg=str(key))


def _saved_steps(workdir):
  """Returns the steps of whole checkpoints, not of one being written."""
  names = (path.name for path in (workdir / "checkpoints").iterdir())
  return sorted(int(name) for name in names if name.isdigit())


@pytest.fixture(scope="module", name="alone")
def _alone(tmp_path_factory, shared):
  """A run of one process with one device, that nobody disturbed."""
  workdir = tmp_path_factory.mktemp("alone") / "run"
  status, _, errors = _end(_start(shared, workdir, JAX_NUM_CPU_DEVICES="1"))
  assert status == 0, errors
  return workdir


@pytest.fixture(scope="module", name="stopped")
def _stopped(tmp_path_factory, shared):
  """Four hosts of four devices, one of which got SIGTERM."""
  workdir = tmp_path_factory.mktemp("stopped") / "run"
  process = _rehearse(shared, workdir, 4, 4)
  _wait_for_step(process, workdir, 11)
  os.kill(_host(process, 2), signal.SIGTERM)
  status, output, errors = _end(process)
  assert status == 0, errors
  assert output.count("stopped by SIGTERM; state is saved") == 1
  # Nothing went wrong; JAX notes the signal on the host that got it.
  (noted,) = errors.splitlines()
  assert noted.startswith("host 2: ") and "SIGTERM caught" in noted
  return workdir


def test_sigterm_to_one_host_saves_one_step_on_all(stopped):
  last = metric_log.load_rows(stopped)[-1]["step"]
  assert _saved_steps(stopped)[-1] == last < NUM_STEPS


@pytest.mark.parametrize(("hosts", "devices"), [(2, 4), (1, 1)])
def test_four_hosts_continue_as_fewer_with_the_same_losses(
  tmp_path, shared, stopped, alone, hosts, devices
):
  workdir = tmp_path / "run"
  shutil.copytree(stopped, workdir)
  status, output, errors = _end(_rehearse(shared, workdir, hosts, devices))
  assert status == 0, errors
  assert f"continuing after step {_saved_steps(stopped)[-1]}" in output
  _assert_same_losses(workdir, alone)


def test_a_node_of_eight_devices_is_one_process_that_stops_and_resumes(
  tmp_path, shared, alone
):
  workdir = tmp_path / "run"
  process = _rehearse(shared, workdir, None, 8)
  _wait_for_step(process, workdir, 11)
  os.kill(_host(process, 0), signal.SIGTERM)
  status, output, errors = _end(process)
  assert status == 0, errors
  assert "train: 8 x cpu" in output
  last = _saved_steps(workdir)[-1]
  assert last < NUM_STEPS
  status, output, errors = _end(_rehearse(shared, workdir, None, 8))
  assert status == 0, errors
  assert f"continuing after step {last}" in output
  _assert_same_losses(workdir, alone)


def test_one_host_continues_as_four_with_the_same_losses(
  tmp_path, shared, alone
):
  workdir = tmp_path / "run"
  shutil.copytree(alone, workdir)
  shutil.rmtree(workdir / "checkpoints" / str(NUM_STEPS))
  # Two hosts hold the same rows.
  process = _rehearse(shared, workdir, 4, 4, "--config.mesh.model=8")
  status, output, errors = _end(process)
  assert status == 0, errors
  assert "continuing after step 50" in output
  _assert_same_losses(workdir, alone)


def test_a_host_killed_is_named_and_the_next_start_resumes(
  tmp_path, shared, alone
):
  """Even from the checkpoint before, if the newest was damaged meanwhile."""
  workdir = tmp_path / "run"
  process = _rehearse(shared, workdir, 2, 2)
  _wait_for_step(process, workdir, 21)
  while len(_saved_steps(workdir)) < 2 and process.poll() is None:
    time.sleep(0.02)  # one to damage, and one to fall back on
  os.kill(_host(process, 1), signal.SIGKILL)
  killed = time.monotonic()
  status, _, errors = _end(process)
  assert time.monotonic() - killed < 4 * HEARTBEAT_SECONDS
  assert status == 128 + signal.SIGKILL
  assert "host 1 was ended by SIGKILL" in errors
  assert f"error: lost host 1 ({socket.gethostname()})" in errors

  newest = _saved_steps(workdir)[-1]
  for path in (workdir / "checkpoints" / str(newest)).rglob("d/*"):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
  status, output, errors = _end(_rehearse(shared, workdir, 2, 2))
  assert status == 0, errors
  assert f"checkpoint {newest} is broken and put aside" in output
  assert "continuing after step" in output
  _assert_same_losses(workdir, alone)


def test_the_first_host_killed_is_named_by_the_others(tmp_path, shared):
  """With it goes the service through which the hosts speak."""
  workdir = tmp_path / "run"
  process = _rehearse(shared, workdir, 2, 2)
  _wait_for_step(process, workdir, 3)
  os.kill(_host(process, 0), signal.SIGKILL)
  status, _, errors = _end(process)
  assert status == 128 + signal.SIGKILL
  assert f"host 1: error: lost host 0 ({socket.gethostname()})" in errors


def _start_pair(shared, workdir, arguments_of_second=(), **environment):
  """Starts two hosts by their environment, as a launch script does."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{s.getsockname()[1]}"
  return [
    _start(
      shared,
      workdir,
      *(arguments_of_second if index else ()),
      JAX_COORDINATOR_ADDRESS=address,
      JAX_NUM_PROCESSES="2",
      JAX_PROCESS_ID=str(index),
      JAX_NUM_CPU_DEVICES="1",
      **environment,
    )
    for index in range(2)
  ]


def test_hosts_that_differ_are_named_before_the_first_step(tmp_path, shared):
  pair = _start_pair(
    shared, tmp_path / "run", ["--config.optimizer.learning_rate=1e-3"]
  )
  (status, _, errors), (other_status, _, other_errors) = map(_end, pair)
  assert status == other_status == 2
  name = socket.gethostname()
  assert errors == (
    "error: the hosts differ: config.optimizer.learning_rate is 0.004 on host "
    f"0 ({name}), 0.001 on host 1 ({name}); expected the same on all (install "
    "and start them alike)\n"
  )
  assert other_errors == ""


def test_a_mistake_that_one_host_meets_ends_all_with_one_line(tmp_path, shared):
  """The second has nothing to prepare, and waits for the first."""
  workdir = tmp_path / "run"
  no_text = f"--config.corpus.source={tmp_path}/missing.txt"
  process = _rehearse(shared, workdir, 2, 1, no_text)
  status, output, errors = _end(process)
  assert (status, output) == (2, "")
  assert errors.count("\n") == 1
  assert "missing.txt' matches no file" in errors
  assert not workdir.exists()


def test_a_host_that_waits_says_for_whom_and_gives_up(tmp_path, shared):
  process, other = _start_pair(
    shared, tmp_path / "run", BERT_JAX_JOIN_SECONDS="3"
  )
  other.kill()
  other.communicate()
  status, _, errors = _end(process)
  assert status == 2
  waiting, gave_up = errors.splitlines()
  assert "this is host 0 of 2" in waiting and "every host" in waiting
  assert "did not all come within 3 s" in gave_up
