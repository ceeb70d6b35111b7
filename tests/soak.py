"""Kills commands at random moments, and compares what they leave in the end.

    JAX_PLATFORMS=cpu python -m tests.soak --kills=100

Each of prepare, train, finetune and train on two hosts of two devices (played
by processes) first runs undisturbed; then it is started, ended with SIGKILL
after a random time, and started again, until the kills are used up. The corpus,
the last checkpoint, the fine-tuned model and every row of metrics must be the
same to the bit. Prints one line a command; exit status 1 if anything differs.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from bert_jax.storage import metric_log
from tests import texts

ROOT = pathlib.Path(__file__).parents[1]
_TRAIN = (
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
  "--config.phase1.num_steps=600",
  "--config.phase2.max_seq_length=64",
  "--config.phase2.max_predictions=10",
  "--config.phase2.batch_size=4",
  "--config.phase2.num_steps=300",
  "--config.optimizer.warmup_steps=40",
  "--config.checkpoint.every_steps=50",
  "--config.eval.every_steps=150",
  "--config.eval.num_batches=2",
  "--config.log.every_steps=10",
  # Rows at other steps are means over other steps.
  "--config.log.every_seconds=0",
  "--config.checkpoint.every_seconds=0",
)
_FINETUNE = (
  "--config=configs/finetune_classification.py",
  "--config.data.max_seq_length=32",
  "--config.train.batch_size=8",
  "--config.train.num_epochs=8",
  "--config.checkpoint.every_steps=20",
  "--config.log.every_steps=10",
  "--config.log.every_seconds=0",
  "--config.checkpoint.every_seconds=0",
)


def _commands(folder):
  """Returns {name: (module, arguments, function of workdir to digest)}."""
  source = f"--config.corpus.source={folder / 'text.txt'}"
  hosts = ("--rehearse_hosts=2", "--rehearse_devices=2")
  data = [f"--config.data.{n}={folder / n}.tsv" for n in ("train", "dev")]
  init = f"--init={folder / 'train'}"
  return {
    "prepare": ("prepare", (*_TRAIN, source), _digest_corpus),
    "train": ("train", (*_TRAIN, source), _digest_run),
    "train, 2 hosts": ("train", (*_TRAIN, source, *hosts), _digest_run),
    "finetune": ("finetune", (*_FINETUNE, *data, init), _digest_fine_tuning),
  }


def _digest_files(paths):
  digest = hashlib.sha256()
  for path in sorted(paths):
    digest.update(path.name.encode() + path.read_bytes())
  return digest.hexdigest()[:12]


def _digest_corpus(workdir):
  files = (workdir / "corpus").iterdir()
  # It says when the files were written.
  return _digest_files(p for p in files if p.name != "verified.json")


def digest_rows(workdir):
  """Returns a digest of all figures but speeds."""
  speeds = ("sequences_per_second", "tokens_per_second", "mfu", "data_wait")
  rows = [
    {key: value for key, value in row.items() if key not in speeds}
    for row in metric_log.load_rows(workdir)
  ]
  return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]


def digest_state(workdir):
  """Returns a digest of every array of the last checkpoint."""
  steps = [int(p.name) for p in (workdir / "checkpoints").iterdir()]
  path = workdir / "checkpoints" / str(max(steps)) / "meta" / "metadata"
  arrays = json.dumps(json.loads(path.read_text())["arrays"])
  return hashlib.sha256(arrays.encode()).hexdigest()[:12]


def _digest_run(workdir):
  """Returns the digests of the corpus, the last state and the rows."""
  state = digest_state(workdir)
  return f"{_digest_corpus(workdir)}-{state}-{digest_rows(workdir)}"


def _digest_fine_tuning(workdir):
  model = _digest_files([workdir / "model" / "model.safetensors"])
  return f"{model}-{digest_rows(workdir)}"


def _write_inputs(folder):
  documents = texts.make_documents(60, 12)
  texts.write_text(folder / "text.txt", documents)
  for name, some in (("train", documents[:50]), ("dev", documents[50:])):
    lines = [
      f"{paragraph}\t{'yes' if 'river' in paragraph else 'no'}"
      for document in some
      for paragraph in document.split("\n")
    ]
    path = folder / f"{name}.tsv"
    path.write_text("\n".join(["sentence\tlabel", *lines, ""]))


def _start(folder, module, arguments, workdir):
  environment = os.environ | {
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  module = ("-m", f"bert_jax.{module}")
  return subprocess.Popen(
    [sys.executable, *module, f"--workdir={workdir}", *arguments],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )


def _finish(process):
  """Waits for the end of a command; returns the seconds that it took."""
  started = time.monotonic()
  output, _ = process.communicate()
  if process.returncode:
    sys.exit(f"a command ended with {process.returncode}:\n{output[-3000:]}")
  return time.monotonic() - started


def _kill(process, seconds):
  """Kills a command after some time; returns whether it was still running."""
  try:
    process.communicate(timeout=seconds)
  except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return True
  if process.returncode:
    sys.exit(f"a command ended with {process.returncode} by itself")
  return False


def _soak(folder, name, command, num_kills, rng):
  """Runs one command undisturbed and disturbed; returns whether both agree."""
  module, arguments, digest = command
  calm = folder / name
  seconds = _finish(_start(folder, module, arguments, calm))
  expected = digest(calm)
  kills = runs = differing = 0
  while kills < num_kills:
    runs += 1
    workdir = folder / f"{name}, killed {runs}"
    for _ in range(min(10, num_kills - kills)):
      process = _start(folder, module, arguments, workdir)
      if not _kill(process, rng.uniform(0, seconds)):
        break
      kills += 1
    _finish(_start(folder, module, arguments, workdir))
    differing += digest(workdir) != expected
  print(f"{name}: {kills} kills in {runs} runs, {differing} differ", flush=True)
  return not differing


def main():
  """Runs the soak; see above."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--kills", type=int, default=100)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--only", help="one of the commands, such as prepare")
  args = parser.parse_args()
  rng = random.Random(args.seed)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    _write_inputs(folder)
    commands = _commands(folder)
    chosen = [args.only] if args.only else list(commands)
    if args.only == "finetune":
      module, arguments, _ = commands["train"]
      _finish(_start(folder, module, arguments, folder / "train"))
    share = -(-args.kills // len(chosen))
    agree = [_soak(folder, name, commands[name], share, rng) for name in chosen]
  sys.exit(0 if all(agree) else 1)


if __name__ == "__main__":
  main()
