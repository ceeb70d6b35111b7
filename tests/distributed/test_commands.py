"""Every command on several processes: what one process gives, after kills too.

`--rehearse_hosts=2 --rehearse_devices=2` starts the processes, as the same
command on every host of a slice would.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import safetensors.numpy
import transformers

from bert_jax.inference import embedding
from bert_jax.pretraining import evaluation, exporting
from bert_jax.storage import metric_log
from bert_jax.weights.pretrained import load_init
from tests import texts
from tests.weights import tiny_bert

ROOT = pathlib.Path(__file__).parents[2]
WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord")
PAIRS = [(a, b) for a in WORDS for b in WORDS if a != b]
TWO_HOSTS = ("--rehearse_hosts=2", "--rehearse_devices=2")
NUM_SHARDS = 60
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
  """Compiled programs, a random model of two classes, and a table of rows."""
  folder = tmp_path_factory.mktemp("commands")
  # Its import takes longer than everything else here.
  (folder / "tensorflow.py").write_text("raise ModuleNotFoundError\n")
  tiny_bert.save(
    folder / "classes",
    transformers.BertForSequenceClassification,
    tiny_bert.make_vocab(WORDS),
    id2label={0: "falling", 1: "rising"},
    problem_type="single_label_classification",
  )
  rows = [f"{a} {b}\t{'rising' if a < b else 'falling'}" for a, b in PAIRS]
  (folder / "order.tsv").write_text("\n".join(["sentence\tlabel", *rows]))
  (folder / "parts").mkdir()
  for number in range(NUM_SHARDS):
    lines = [f"{a} {b} {number}" for a, b in PAIRS[: 3 + number]]
    (folder / f"parts/{number:02}.txt").write_text("\n".join(lines) + "\n")
  return folder


def _start(folder, module, *arguments):
  return subprocess.Popen(
    [sys.executable, "-m", f"bert_jax.{module}", *map(str, arguments)],
    cwd=ROOT,
    env=os.environ
    | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}:{folder}"}
    | {"BERT_JAX_HEARTBEAT_SECONDS": "10"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _end(process, status=0):
  """Waits for a process; returns its standard output and error."""
  output, errors = process.communicate(timeout=600)
  assert process.returncode == status, output + errors
  return output, errors


def _wait_for(process, condition):
  deadline = time.monotonic() + 300
  while not condition():
    if process.poll() is not None or time.monotonic() > deadline:
      process.terminate()
      raise AssertionError(f"never came: {process.communicate()}")
    time.sleep(0.02)


def _kill_host(rehearsal, index, number):
  """Sends a signal to one host of a rehearsal."""
  wanted = f"JAX_PROCESS_ID={index}".encode()
  children = pathlib.Path(f"/proc/{rehearsal.pid}/task").glob("*/children")
  for child in " ".join(path.read_text() for path in children).split():
    variables = pathlib.Path(f"/proc/{child}/environ").read_bytes()
    if wanted in variables.split(b"\0"):
      os.kill(int(child), number)
      return
  raise AssertionError(f"host {index} is not there")


@pytest.fixture(scope="module", name="run")
def _run(folder):
  """The workdir of a tiny pretraining."""
  texts.write_text(folder / "text.txt", texts.make_documents(60, 12))
  settings = (
    *("model.num_hidden_layers=1", "model.hidden_size=32"),
    *("model.intermediate_size=64", "model.max_position_embeddings=32"),
    *("corpus.vocab_size=200", "corpus.eval_fraction=0.1"),
    *("phase1.max_seq_length=32", "phase1.max_predictions=5"),
    *("phase1.batch_size=16", "phase1.num_steps=5", "phase2.num_steps=0"),
    *("optimizer.warmup_steps=2", "eval.num_batches=3", "eval.every_steps=9"),
    f"corpus.source={folder}/text.txt",
  )
  _end(
    _start(
      folder,
      "train",
      "--config=configs/quickstart.py",
      f"--workdir={folder}/run",
      *(f"--config.{setting}" for setting in settings),
    )
  )
  return folder / "run"


def test_evaluation_gives_the_figures_of_one_process(folder, run):
  output, errors = _end(
    _start(folder, "evaluate", f"--workdir={run}", *TWO_HOSTS)
  )
  rows = list(map(json.loads, output.splitlines()))
  expected = list(evaluation.evaluate(run))
  assert errors.count("held out: guessing") == len(rows) == len(expected) == 1
  for row, wanted in zip(rows, expected, strict=True):
    assert row.keys() == wanted.keys()
    for key, value in wanted.items():
      same = value if isinstance(value, str) else pytest.approx(value, rel=1e-5)
      assert row[key] == same, key


def test_one_process_exports_while_the_others_wait(folder, run):
  output, _ = _end(
    _start(
      folder,
      "export",
      f"--workdir={run}",
      f"--output={folder}/export",
      "--with_optimizer",
      *TWO_HOSTS,
    )
  )
  assert output.count("export: step 5") == 1
  exporting.export(run, folder / "expected", with_optimizer=True)
  names = {path.name for path in (folder / "expected").iterdir()}
  assert names == {path.name for path in (folder / "export").iterdir()}
  for name in ("model.safetensors", "optimizer.safetensors", "vocab.txt"):
    content = (folder / "export" / name).read_bytes()
    assert content == (folder / "expected" / name).read_bytes(), name


def _finetune(folder, workdir, *arguments):
  settings = (
    *("model.dtype=float32", "data.max_seq_length=32", "train.batch_size=16"),
    *("train.num_epochs=100", "optimizer.learning_rate=1e-4"),
    *(
      "eval.every_steps=60",
      "checkpoint.every_steps=50",
      "log.every_steps=1",
    ),
    *(f"data.train={folder}/order.tsv", f"data.dev={folder}/order.tsv"),
  )
  return _start(
    folder,
    "finetune",
    "--config=configs/finetune_classification.py",
    f"--init={folder}/classes",
    f"--workdir={workdir}",
    *(f"--config.{setting}" for setting in settings),
    *arguments,
  )


def _losses(workdir):
  rows = metric_log.load_rows(workdir)
  assert len({(r["split"], r["step"]) for r in rows}) == len(rows)
  return {(r["split"], r["step"]): r["loss"] for r in rows}


def test_fine_tuning_stopped_and_resumed_is_that_of_one_process(folder):
  _end(_finetune(folder, folder / "alone"))
  workdir = folder / "both"
  process = _finetune(folder, workdir, *TWO_HOSTS)
  _wait_for(process, lambda: len(metric_log.load_rows(workdir)) > 10)
  _kill_host(process, 1, signal.SIGTERM)
  output, _ = _end(process)
  assert output.count("stopped by SIGTERM; what is done is saved") == 1
  stopped_at = max(step for _, step in _losses(workdir))
  arguments = (*TWO_HOSTS, f"--output={folder}/finetuned")
  output, _ = _end(_finetune(folder, workdir, *arguments))
  assert f"continuing after step {stopped_at}\n" in output
  found, expected = _losses(workdir), _losses(folder / "alone")
  assert found.keys() == expected.keys()
  for key, loss in expected.items():
    assert found[key] == pytest.approx(loss, rel=1e-5), key
  ours = safetensors.numpy.load_file(folder / "finetuned/model.safetensors")
  best = safetensors.numpy.load_file(workdir / "model/model.safetensors")
  assert all((ours[name] == best[name]).all() for name in best)


def _shards(folder, name, ending):
  return sorted(folder.glob(f"{name}-*-of-{NUM_SHARDS:05}{ending}"))


def _predict(folder, *arguments):
  return _start(
    folder,
    "finetune.predict",
    f"--init={folder}/classes",
    "--config=configs/finetune_classification.py",
    "--config.model.dtype=float32",
    "--config.data.max_seq_length=32",
    "--format=lines",
    *arguments,
  )


def test_predictions_are_shared_and_go_on_after_a_kill(folder):
  pattern = f"--input={folder}/parts/*.txt"
  arguments = (pattern, f"--output={folder}/labels.jsonl", *TWO_HOSTS)
  process = _predict(folder, *arguments)
  _wait_for(process, lambda: _shards(folder, "labels", ".jsonl"))
  _kill_host(process, 1, signal.SIGKILL)
  _end(process, 128 + signal.SIGKILL)
  done = {path: path.stat() for path in _shards(folder, "labels", ".jsonl")}
  assert 0 < len(done) < NUM_SHARDS
  output, _ = _end(_predict(folder, *arguments))
  assert f"{len(done)} of {NUM_SHARDS} files are done already" in output
  shards = _shards(folder, "labels", ".jsonl")
  assert len(shards) == NUM_SHARDS
  assert {path: path.stat() for path in done} == done  # not done twice

  together = folder / "all.txt"
  parts = sorted((folder / "parts").iterdir())
  together.write_text("".join(path.read_text() for path in parts))
  whole = folder / "whole.jsonl"
  _end(_predict(folder, f"--input={together}", f"--output={whole}"))
  expected = list(map(json.loads, whole.read_text().splitlines()))
  found = [json.loads(x) for p in shards for x in p.read_text().splitlines()]
  assert [row["label"] for row in found] == [row["label"] for row in expected]
  for ours, theirs in zip(found, expected, strict=True):
    wanted = pytest.approx(theirs["probabilities"], abs=1e-5)
    assert ours["probabilities"] == wanted


def test_embeddings_are_shared_and_those_of_one_process(folder):
  output, _ = _end(
    _start(
      folder,
      "embed",
      f"--init={folder}/classes",
      f"--input={folder}/parts/*.txt",
      f"--output={folder}/vectors.npz",
      *TWO_HOSTS,
    )
  )
  assert output.count("embed: ") == NUM_SHARDS / 2  # process 0's
  embedder = embedding.create_embedder(
    load_init(folder / "classes"), "last", None, None, 16
  )
  for number, shard in enumerate(_shards(folder, "vectors", ".npz")):
    lines = (folder / f"parts/{number:02}.txt").read_text().splitlines()
    rows = embedding.embed_rows(embedder, [(line, None) for line in lines])
    expected = np.stack([row.vectors for row in rows])
    found = np.load(shard)["embeddings"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
  assert number == NUM_SHARDS - 1
  assert jax.process_count() == 1


def test_a_mistake_in_the_input_of_one_process_ends_all_with_one_line(folder):
  (folder / "odd").mkdir()
  (folder / "odd/a.txt").write_text("amber\n")
  (folder / "odd/b.txt").write_bytes(b"\xff\n")
  _, errors = _end(
    _predict(
      folder,
      f"--input={folder}/odd/*.txt",
      f"--output={folder}/odd.jsonl",
      *TWO_HOSTS,
    ),
    2,
  )
  (line,) = errors.splitlines()
  assert "odd/b.txt line 1 is not UTF-8" in line
