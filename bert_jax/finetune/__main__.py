"""Fine-tunes a BERT on a task; resumes whatever the workdir holds.

    python -m bert_jax.finetune --config=configs/finetune_glue.py:sst2 \\
      --workdir=W --init=H_or_W [--output=H] [--seeds=5]

`--init` is a workdir of bert_jax.train, a Hugging Face folder or a TensorFlow
checkpoint. The workdir keeps the model that is best by the task's metric in
`model/`, a Hugging Face folder, its predictions on the held-out rows, and the
metrics of every evaluation. With --seeds=N there are N runs, in
<workdir>/seed_0 to seed_<N-1>, and the mean and the standard deviation of what
each of them reached is in <workdir>/results.json. `--output` gets a copy of
the (best) model.
"""

import json
import signal
import sys

import numpy as np
from absl import flags

from bert_jax import command
from bert_jax.errors import UserError
from bert_jax.finetune import run as run_lib
from bert_jax.finetune.config import default_config, validate
from bert_jax.storage import damage, paths
from bert_jax.training import signals
from bert_jax.training.host_memory import keep_freed_memory
from bert_jax.weights import hf
from bert_jax.weights.pretrained import MODEL_DIR


def finetune(config, workdir, init, num_seeds=None):
  """Fine-tunes once, or once for each of several seeds.

  Args:
    config: the settings.
    workdir: str or path.
    init: what to start from, see `pretrained.load_init`.
    num_seeds: how many seeds, from 0; None takes the settings' one.

  Returns:
    (folder of the best model, or None if a signal stopped the run before its
    end; the signal's number or None).

  Raises:
    UserError: settings, data, weights or workdir are not as they must be.
  """
  validate(config)
  keep_freed_memory()
  workdir = paths.as_path(workdir)
  run = run_lib.create_fine_tuning(config, init)
  if num_seeds is None:
    best, stopped_by = run_lib.train(run, config, workdir)
    if stopped_by:
      return None, stopped_by
    _print_best(workdir, best)
    return workdir / MODEL_DIR, None
  rows = []
  for seed in range(num_seeds):
    config.seed = seed
    folder = workdir / f"seed_{seed}"
    best, stopped_by = run_lib.train(
      run_lib.with_seed(run, seed), config, folder
    )
    if stopped_by:
      return None, stopped_by
    _print_best(folder, best)
    rows.append(best)
  scores = {name: [row[name] for row in rows] for name in run.metric_names}
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


def copy_model(folder, output):
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


def main(argv):
  """Runs the command."""
  del argv
  if not flags.FLAGS.init:
    raise UserError(
      "--init is missing; expected a workdir of bert_jax.train, a Hugging Face "
      "folder or a TensorFlow checkpoint"
    )
  config, workdir = command.config_and_workdir()
  signals.raise_on_signals()
  try:
    with damage.full_disk_told(workdir):
      folder, stopped_by = finetune(
        config, workdir, flags.FLAGS.init, flags.FLAGS.seeds
      )
  except signals.Stopped as e:
    stopped_by = e.number
  if stopped_by:
    name = signal.Signals(stopped_by).name
    print(f"finetune: stopped by {name}; what is done is saved")
    # Preemption is an expected end; somebody at the keyboard wanted a stop.
    sys.exit(128 + stopped_by if stopped_by == signal.SIGINT else 0)
  if flags.FLAGS.output:
    copy_model(folder, flags.FLAGS.output)


if __name__ == "__main__":
  command.define_config_flags()
  flags.DEFINE_string("init", None, "Model to start from.")
  flags.DEFINE_string("output", None, "Folder for a copy of the best model.")
  flags.DEFINE_integer("seeds", None, "Number of runs.", lower_bound=1)
  command.run(main, default_config)
