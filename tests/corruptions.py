"""Damages each kind of file of a run, and tells what each command makes of it.

    JAX_PLATFORMS=cpu python -m tests.corruptions [--only=corpus/]

A tiny run is brought to the middle of its steps. Then, for every kind of file
and folder in its workdir, one byte is changed, half is cut off, it is emptied,
deleted, exchanged for another of its kind, and replaced by a folder (a folder:
by a file); each time the run is continued, evaluated and exported. Prints a
table in Markdown and what its words mean, and the lines of errors to standard
error; exit status 1 if damage was used without a word or ended in a traceback.
"""

import argparse
import contextlib
import functools
import hashlib
import io
import pathlib
import re
import shutil
import sys
import tempfile

import jax

from bert_jax.config import default_config
from bert_jax.distributed.child_process import call_alone
from bert_jax.distributed.hosts import Hosts
from bert_jax.errors import UserError
from bert_jax.pretraining import evaluation, exporting, session
from bert_jax.pretraining.initialization import create_init
from bert_jax.storage.access import storage_errors_told
from tests import soak, texts

# Checkpoints of the run that is damaged, and its end.
OLDER_STEP, STEP, LAST_STEP = 4, 6, 8
_SETTINGS = {
  "model.num_hidden_layers": 1,
  "model.hidden_size": 32,
  "model.intermediate_size": 64,
  "model.num_attention_heads": 2,
  "model.max_position_embeddings": 32,
  "model.dtype": "float32",
  "corpus.vocab_size": 200,
  "corpus.eval_fraction": 0.1,
  "phase1.num_steps": 0,
  "phase2.max_seq_length": 32,
  "phase2.max_predictions": 5,
  "phase2.batch_size": 16,
  "phase2.num_steps": LAST_STEP,
  "optimizer.warmup_steps": 2,
  "checkpoint.every_steps": 2,
  "checkpoint.every_seconds": 0,
  "checkpoint.keep": 3,
  "eval.every_steps": OLDER_STEP,
  "eval.num_batches": 1,
  "log.every_steps": 1,
  "log.every_seconds": 0,
}
_CHECKPOINT = f"checkpoints/{STEP}"
# Files and, ending with /, folders of the run; * stands for the largest one.
_KINDS = (
  "config.json",
  "vocab.txt",
  "init.json",
  "init_vocab.txt",
  "metrics.jsonl",
  ".lock",
  "corpus/manifest.json",
  "corpus/tokens-00000.bin",
  "corpus/sentences.bin",
  "corpus/documents.npy",
  "corpus/vocab.txt",
  "corpus/report.json",
  "corpus/verified.json",
  "corpus/",
  f"{_CHECKPOINT}/_CHECKPOINT_METADATA",
  f"{_CHECKPOINT}/commit_success.txt",
  f"{_CHECKPOINT}/meta/metadata",
  f"{_CHECKPOINT}/meta/commit_success.txt",
  f"{_CHECKPOINT}/state/_METADATA",
  f"{_CHECKPOINT}/state/_sharding",
  f"{_CHECKPOINT}/state/array_metadatas/process_0",
  f"{_CHECKPOINT}/state/commit_success.txt",
  f"{_CHECKPOINT}/state/manifest.ocdbt",
  f"{_CHECKPOINT}/state/d/*",
  f"{_CHECKPOINT}/state/ocdbt.process_0/manifest.ocdbt",
  f"{_CHECKPOINT}/state/ocdbt.process_0/d/*",
  f"{_CHECKPOINT}/",
  "checkpoints/",
  "compiled/*/*-cache",
  "compiled/*/checksums.json",
  "compiled/",
  "tensorboard/*",
  "tensorboard/",
)
_DAMAGES = ("byte", "half", "empty", "gone", "swapped", "replaced")
_MEANINGS = {
  "same": "the result is that of the undamaged run to the bit",
  "older": f"checkpoint {STEP} is named and put aside, {OLDER_STEP} is "
  "restored; the result is that of the undamaged run to the bit",
  "before": f"checkpoint {OLDER_STEP} is used, and the result says so",
  "told": "a line names the file; the result is the same to the bit but for "
  "what the file alone holds",
  "error": "one line names the file or the checkpoint, status 2; nothing is "
  "changed",
  "-": "there is no such damage",
}
# What holds figures and no model.
_REPORTED = {"README.md", "curve.png", "metrics.jsonl"}


def _config(folder, **changes):
  config = default_config()
  source = {"corpus.source": str(folder / "text.txt")}
  config.update_from_flattened_dict(_SETTINGS | source | changes)
  return config


def _make_run(folder, name, init=None, **changes):
  """Makes a run in a process of its own, with its programs beside it."""
  sys.stdout = sys.stderr
  jax.config.update("jax_compilation_cache_dir", None)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  config = _config(folder, **changes)
  session.train(config, str(folder / name), Hosts(), init)


def _make_runs(folder):
  """Makes the run to damage, and `other`, whose files it is swapped with."""
  other = {
    "phase2.num_steps": 4,
    "optimizer.learning_rate": 1e-3,
    "corpus.source": str(folder / "other.txt"),
  }
  make = functools.partial(_make_run, **other)
  call_alone(make, folder, "other")
  init = create_init(str(folder / "other"), extend_vocab=3)
  call_alone(_make_run, folder, "whole", init)


def _train(folder):
  """Continues the run; returns what it comes to."""
  workdir = folder / "run"
  session.train(_config(folder), str(workdir), Hosts())
  return {
    "state": soak.digest_state(workdir),
    "vocab.txt": (workdir / "vocab.txt").read_text(),
    "metrics.jsonl": soak.digest_rows(workdir),
  }


def _evaluate(folder):
  return {"rows": list(evaluation.evaluate(folder / "run"))}


def _export(folder):
  output = folder / "output"
  if output.exists():
    shutil.rmtree(output)
  exporting.export(folder / "run", output)
  return {p.name: p.read_bytes() for p in output.iterdir()}


_COMMANDS = {"train": _train, "evaluate": _evaluate, "export": _export}


def _restore(folder):
  """Makes the run undamaged again, in the place where it was made."""
  run = folder / "run"
  if run.exists():
    shutil.rmtree(run)
  shutil.copytree(folder / "whole", run)
  (run / ".lock").write_text("12345")


def _find(run, kind):
  """Returns the path that a kind stands for."""
  paths = run.glob(kind.rstrip("/"))
  return max(paths, key=lambda path: path.stat().st_size)


def _find_another(folder, path, kind):
  """Returns a path of the same kind with other content, or None."""
  run = folder / "run"
  name = path.relative_to(run)
  if "*" in kind:
    others = [p for p in path.parent.glob(pathlib.Path(kind).name) if p != path]
    return max(others, key=lambda path: path.stat().st_size, default=None)
  if kind.startswith(_CHECKPOINT):
    return run / str(name).replace(_CHECKPOINT, f"checkpoints/{OLDER_STEP}")
  if kind == "init_vocab.txt":
    return folder / "other" / "vocab.txt"
  other = folder / "other" / name
  return other if other.exists() else None


def _damage(folder, kind, how):
  """Damages the run; returns whether there is such a damage."""
  path = _find(folder / "run", kind)
  if how == "swapped":
    return _swap(folder / "run", path, _find_another(folder, path, kind))
  if kind.endswith("/") and how in ("byte", "half"):
    return False
  if how == "byte":
    path.write_bytes(_change_a_byte(path.read_bytes()))
  elif how == "half":
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
  elif path.is_dir():
    shutil.rmtree(path)
    if how == "empty":
      path.mkdir()
    elif how == "replaced":
      path.write_text("not a folder")
  else:
    path.unlink()
    if how == "empty":
      path.touch()
    elif how == "replaced":
      path.mkdir()
  return True


def _swap(run, path, other):
  """Exchanges two paths of the run, or copies one of the other run to it."""
  if other is None:
    return False
  aside = path.with_name(f"{path.name}.aside")
  copy = shutil.copytree if other.is_dir() else shutil.copyfile
  copy(other, aside)
  if run in other.parents:
    _remove(other)
    shutil.move(path, other)
  else:
    _remove(path)
  shutil.move(aside, path)
  return True


def _remove(path):
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink()


def _change_a_byte(content):
  """Changes the digit nearest to the middle of a text, or the middle byte."""
  middle = len(content) // 2
  digits = [m.start() for m in re.finditer(rb"[1-9]", content)]
  letters = [m.start() for m in re.finditer(rb"\w", content)]
  found = digits or letters
  if not content or not content.isascii() or not found:
    changed = bytearray(content or b"\0")
    changed[middle] ^= 0x10
    return bytes(changed)
  at = min(found, key=lambda index: abs(index - middle))
  return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def _digest_results(run):
  """Returns a digest of what a refused start must not change."""
  digest = hashlib.sha256()
  for path in [
    run / "metrics.jsonl",
    *sorted((run / "checkpoints").rglob("*")),
  ]:
    if path.is_file():
      digest.update(str(path).encode() + path.read_bytes())
  return digest.hexdigest()


def _call(folder, command):
  """Runs a command on the run; returns (what it came to, what it printed)."""
  printed = io.StringIO()
  before = _digest_results(folder / "run")
  try:
    with (
      contextlib.redirect_stdout(printed),
      contextlib.redirect_stderr(printed),
      storage_errors_told(folder / "run"),
    ):
      return _COMMANDS[command](folder), printed.getvalue()
  except UserError as e:
    is_changed = _digest_results(folder / "run") != before
    is_bad = is_changed or "\n" in str(e)
    return ("CHANGED" if is_bad else "error"), str(e)
  except Exception as e:  # which is what is looked for
    return f"TRACEBACK {type(e).__name__}", str(e)


def _call_without_programs(folder, command):
  """Does the same in a process that keeps its programs in the workdir."""
  jax.config.update("jax_compilation_cache_dir", None)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  return _call(folder, command)


def _judge(found, printed, expected, before, name):
  """Returns a word for what a command made of damage to the file `name`."""
  if isinstance(found, str):
    return found
  if found == before:
    return "before"
  differing = {k for k in expected if found.get(k) != expected[k]}
  if not differing:
    if "put aside" in printed:
      return "older"
    return "told" if name in printed else "same"
  is_told = differing <= _REPORTED and name in printed
  return "told" if is_told else f"SILENT {min(differing)}"


def _try(folder, kind, how, command, expected, before):
  """Damages the run, runs a command; returns (a word, what it printed)."""
  _restore(folder)
  path = _find(folder / "run", kind)
  name = str(path.relative_to(folder)) if path.is_dir() else path.name
  if not _damage(folder, kind, how):
    return "-", ""
  if kind.startswith("compiled") and command == "train":
    try:
      found, printed = call_alone(_call_without_programs, folder, command)
    except ChildProcessError as e:
      found, printed = "CRASH", str(e)
  else:
    found, printed = _call(folder, command)
  return _judge(found, printed, expected, before, name), printed


def _check_kind(folder, kind, expected, before):
  """Prints the row of a kind; returns whether all of it is good."""
  cells, is_good = [], True
  for how in _DAMAGES:
    words = []
    for command in _COMMANDS:
      word, printed = _try(
        folder, kind, how, command, expected[command], before[command]
      )
      words.append(word)
      is_good &= word in _MEANINGS
      if word == "error" or word not in _MEANINGS:
        text = printed.replace(str(folder), "")[-500:]
        print(f"{kind}, {how}, {command}: {word}: {text}", file=sys.stderr)
    cells.append(words[0] if len(set(words)) == 1 else ", ".join(words))
  print(f"| `{kind}` | {' | '.join(cells)} |", flush=True)
  return is_good


def _expect(folder, without=None):
  """Returns what each command comes to on an undamaged run."""
  expected = {}
  for command in _COMMANDS:
    _restore(folder)
    if without:
      shutil.rmtree(folder / "run" / without)
    expected[command], printed = _call(folder, command)
    if isinstance(expected[command], str):
      sys.exit(f"{command} fails on an undamaged run: {printed}")
  return expected


def main():
  """Prints the table; see above."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    "--only", default="", help="regular expression of files, such as corpus/"
  )
  args = parser.parse_args()
  kinds = [kind for kind in _KINDS if re.match(args.only, kind)]
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    for seed, name in enumerate(("text.txt", "other.txt")):
      texts.write_text(folder / name, texts.make_documents(40, 8, seed))
    _make_runs(folder)
    programs = next((folder / "whole" / "compiled").iterdir())
    shutil.copytree(programs, folder / "programs")
    jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    shutil.rmtree(folder / "whole" / "checkpoints" / str(LAST_STEP))
    expected = _expect(folder)
    before = _expect(folder, _CHECKPOINT) | {"train": None}
    print(f"| damaged | {' | '.join(_DAMAGES)} |")
    print(f"|---|{'---|' * len(_DAMAGES)}")
    good = [_check_kind(folder, kind, expected, before) for kind in kinds]
  print()
  for word, meaning in _MEANINGS.items():
    print(f"- {word}: {meaning}")
  sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
  main()
