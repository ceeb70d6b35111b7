"""Fine-tunes once or with several seeds, on all processes of the command."""

import json
import signal

import numpy as np

from bert_jax.distributed import consistency
from bert_jax.distributed.joining import joined
from bert_jax.finetune import run as run_lib
from bert_jax.finetune.config import validate
from bert_jax.storage import paths
from bert_jax.storage.access import storage_errors_told
from bert_jax.training import signals
from bert_jax.training.host_memory import keep_freed_memory
from bert_jax.weights import hf
from bert_jax.weights.pretrained import MODEL_DIR


def finetune_on_all_hosts(config, workdir, init, num_seeds=None, output=None):
  """Fine-tunes as one of the hosts of a slice, or alone.

  Args:
    config: the settings.
    workdir: str or path.
    init: what to start from, see `pretrained.load_init`.
    num_seeds: how many seeds, from 0; None takes the settings' one.
    output: folder for a copy of the best model, or None.

  Returns:
    the exit status: 0 at the end and after a preemption, which is expected;
    128 + SIGINT where somebody at the keyboard stopped a run of one process.

  Raises:
    UserError: see `finetune`, or `output` holds something else.
  """
  with joined(is_restarted=True) as hosts:
    if hosts.is_alone:
      signals.raise_on_signals()
    try:
      with storage_errors_told(workdir):
        folder, stopped_by = finetune(config, workdir, init, num_seeds, hosts)
    except signals.Stopped as e:
      stopped_by = e.number
    if stopped_by:
      name = signal.Signals(stopped_by).name
      print(f"finetune: stopped by {name}; what is done is saved")
    elif output and hosts.is_first:
      _copy_model(folder, output)
  if stopped_by == signal.SIGINT and hosts.is_alone:
    return 128 + stopped_by
  return 0


def finetune(config, workdir, init, num_seeds, hosts):
  """Fine-tunes once, or once for each of several seeds.

  Args:
    config: the settings.
    workdir: str or path.
    init: what to start from, see `pretrained.load_init`.
    num_seeds: how many seeds, from 0; None takes the settings' one.
    hosts: `Hosts`, all of which call this.

  Returns:
    (folder of the best model, or None if a signal stopped the run before its
    end; the signal's number or None).

  Raises:
    UserError: settings, data, weights or workdir are not as they must be.
  """
  validate(config)
  keep_freed_memory()
  workdir = paths.as_path(workdir)
  consistency.compare(hosts, consistency.software(config))
  run = run_lib.create_fine_tuning(config, init)
  consistency.compare(
    hosts,
    consistency.devices() | {"the data and the weights": run.fingerprint},
  )
  if num_seeds is None:
    best, stopped_by = run_lib.train(run, config, workdir, hosts)
    if stopped_by:
      return None, stopped_by
    _print_best(workdir, best)
    return workdir / MODEL_DIR, None
  rows = []
  for seed in range(num_seeds):
    config.seed = seed
    folder = workdir / f"seed_{seed}"
    best, stopped_by = run_lib.train(
      run_lib.with_seed(run, seed), config, folder, hosts
    )
    if stopped_by:
      return None, stopped_by
    _print_best(folder, best)
    rows.append(best)
  scores = {name: [row[name] for row in rows] for name in run.metric_names}
  if hosts.is_first:
    _report(workdir, scores)
  winner = int(np.argmax(scores[run.metric_names[0]]))
  return workdir / f"seed_{winner}" / MODEL_DIR, None


def _print_best(workdir, row):
  names = [k for k in row if k not in ("step", "split", "phase")]
  shown = [f"{k} {row[k]:.4f}" for k in names if row[k] is not None]
  print(
    f"finetune: best at step {row['step']:,}: {', '.join(shown)}; the model is "
    f"in {workdir / MODEL_DIR}"
  )


def _report(workdir, scores):
  """Prints and keeps what several seeds reached."""
  results = {}
  for name, values in scores.items():
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    results[name] = {
      "mean": float(np.mean(values)),
      "standard_deviation": float(deviation),
      "by_seed": values,
    }
    print(
      f"finetune: {name} {np.mean(values):.4f} +- {deviation:.4f} over "
      f"{len(values)} seeds ({', '.join(f'{v:.4f}' for v in values)})"
    )
  text = json.dumps(results, indent=2) + "\n"
  paths.write_file(workdir / "results.json", text)


def _copy_model(folder, output):
  """Copies an exported model.

  Raises:
    UserError: `output` holds something else.
  """
  output = paths.as_path(output)
  names = {path.name for path in folder.iterdir()}
  hf.check_replaceable(output, names)
  with paths.replaced_folder(output, hf.CONFIG_FILE) as unfinished:
    _copy_files(folder, unfinished)
  print(f"finetune: the model is also in {output}")


def _copy_files(folder, output):
  """Copies the files of a folder and of those in it, such as 1_Pooling."""
  for path in folder.iterdir():
    if path.is_dir():
      _copy_files(path, output / path.name)
    else:
      paths.copy_file(path, output / path.name)
