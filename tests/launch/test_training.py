"""launch/pod.sh up with real training, on a fake slice.

A process of four CPU devices on each worker trains, is killed in the middle
because the slice is taken away, and goes on on the next slice.
"""

import json
import os
import socket
import subprocess
import sys

import pytest
import transformers

from bert_jax.storage import metric_log
from tests import texts
from tests.launch.fake_gcloud.pod import HERE, Pod

SETTINGS = (
  "--config.model.num_hidden_layers=1",
  "--config.model.hidden_size=32",
  "--config.model.intermediate_size=64",
  "--config.model.max_position_embeddings=64",
  "--config.corpus.source=texts/text.txt",
  "--config.corpus.vocab_size=200",
  "--config.corpus.eval_fraction=0.1",
  "--config.phase1.max_seq_length=32",
  "--config.phase1.max_predictions=5",
  "--config.phase1.batch_size=16",
  "--config.phase1.num_steps=40",
  "--config.phase2.max_seq_length=64",
  "--config.phase2.max_predictions=10",
  "--config.phase2.batch_size=16",
  "--config.phase2.num_steps=10",
  "--config.optimizer.warmup_steps=4",
  "--config.checkpoint.every_steps=10",
  "--config.eval.every_steps=20",
  "--config.eval.num_batches=2",
  "--config.log.every_steps=1",
)
NUM_STEPS = 50
ACCELERATOR_TYPE = "v4-16"
NUM_PROCESSES = 2  # the workers of that slice


def _train_undisturbed(pod, workdir):
  """Trains as the workers do, by hand."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{s.getsockname()[1]}"
  processes = [
    subprocess.Popen(
      [
        *(sys.executable, "-m", "bert_jax.train"),
        "--config=configs/quickstart.py",
        f"--workdir={workdir}",
        f"--config.corpus.dir={pod.checkout}/runs/{pod.name}/corpus",
        *SETTINGS,
      ],
      cwd=pod.checkout,
      env=pod.environment
      | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "4",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(NUM_PROCESSES),
        "JAX_PROCESS_ID": str(index),
      },
      stdout=subprocess.DEVNULL,
    )
    for index in range(NUM_PROCESSES)
  ]
  assert [p.wait(600) for p in processes] == [0] * NUM_PROCESSES


def _losses(workdir):
  fields = ("loss", "mlm_loss", "nsp_loss", "grad_norm")
  rows = metric_log.load_rows(workdir)
  assert len({(r["split"], r["step"]) for r in rows}) == len(rows)
  return {(r["split"], r["step"]): [r[f] for f in fields] for r in rows}


@pytest.mark.slow
def test_a_run_on_slices_that_are_taken_away_ends_as_if_nothing_had_been(
  tmp_path,
):
  pod = Pod(
    tmp_path,
    HERE / "bucket_python",
    OVERRIDES=f"({' '.join(SETTINGS)})",
    CORPUS="runs/my-bert/corpus",
    PRICE_PER_CHIP_HOUR="1.2",
    POLL_SECONDS="0.5",
    ACCELERATOR_TYPE=ACCELERATOR_TYPE,
  )
  # Nobody on a worker has the text.
  (pod.checkout / "texts").mkdir()
  texts.write_text(
    pod.checkout / "texts/text.txt", texts.make_documents(60, 12)
  )
  pod.cloud.environment |= {
    "PYTHONPATH": str(pod.checkout),
    "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  pod.environment = pod.cloud.environment
  up = pod.start("up")
  try:
    pod.wait_for(lambda: pod.steps() or up.poll() is not None, 400)
    pod.cloud.preempt()
    assert pod.steps()[-1] < NUM_STEPS, pod.output
    assert up.wait(400) == 0, pod.output
  finally:
    up.kill()
    pod.close()
  assert "lost (SUSPENDED)" in pod.output
  assert len(pod.calls("resources create")) == 2
  assert pod.costing() == []
  _train_undisturbed(pod, tmp_path / "undisturbed")
  collected = pod.checkout / "runs" / pod.name
  assert _losses(collected) == _losses(tmp_path / "undisturbed")
  assert max(step for _, step in _losses(collected)) == NUM_STEPS
  model = transformers.BertForPreTraining.from_pretrained(collected / "export")
  assert model.config.hidden_size == 32
  config = json.loads((collected / "config.json").read_text())
  assert os.path.isdir(pod.checkout / config["corpus"]["dir"])
