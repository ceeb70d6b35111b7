"""Held-out metrics of a checkpoint.

The examples and their masks are fixed once for a corpus and a length, so the
figures of different checkpoints and runs compare.
"""

import functools
import json
import math
import sys

import jax

from bert_jax.config import active_phases
from bert_jax.data.corpus import split_documents
from bert_jax.data.mixing import training_documents
from bert_jax.data.pipeline import iterate_batches
from bert_jax.data.word_frequency import frequency_loss
from bert_jax.distributed.joining import joined
from bert_jax.pretraining import objective
from bert_jax.pretraining import run as run_lib
from bert_jax.sharding import rows as rows_lib
from bert_jax.storage import checkpoints, paths
from bert_jax.training import sums as sums_lib


def make_evaluate(run, name, params, source=None):
  """Builds the held-out evaluation of one phase.

  Args:
    run: `Run`.
    name: "phase1" or "phase2"; says the length.
    params: nested dict of arrays or shapes.
    source: number of an entry of `corpus.source`, whose held-out documents
      alone are taken; None takes all.

  Returns:
    Function of params to a dict of floats: loss, mlm_loss, mlm_accuracy,
    nsp_loss, nsp_accuracy, nsp_base_rate, fill, the parts of
    `diagnosis.diagnostic_sums` (None where no prediction is of that part), and
    mlm_perplexity_masked, the exponential of mlm_loss_masked.
  """
  phase = run.config[name]
  examples = run_lib.held_out_examples(run, name, source)
  abstract = jax.eval_shape(lambda params: params, params)

  @functools.cache
  def eval_step():
    # Built when first needed: it counts tokens of the training text.
    return objective.make_eval_step(run, name, abstract)

  def evaluate(params):
    batches = iterate_batches(
      examples,
      phase.batch_size,
      0,
      run.config.eval.num_batches,
      rows_lib.local_rows(run.mesh, phase.batch_size),
    )
    total = None
    for number, batch in enumerate(batches):
      batch = rows_lib.global_batch(run.mesh, batch)
      # Added up on the host: sums of global arrays would be programs too.
      sums = jax.device_get(eval_step()(params, batch, number))
      total = sums_lib.add(total, sums)
    return _figures(total)

  return evaluate


def _figures(sums):
  """Turns the sums of all batches into what a row reports."""
  means = sums_lib.mean_metrics(sums, objective.LOSSES)
  figures = {name: float(value) for name, value in means.items()}
  figures |= {name: None for name, (_, weight) in sums.items() if not weight}
  loss = figures["mlm_loss_masked"]
  # Above 700 nats a float overflows; no loss is there but of a broken model.
  perplexity = None if loss is None else math.exp(min(loss, 700))
  return figures | {"mlm_perplexity_masked": perplexity}


def evaluate(workdir, step=None, hosts=None):
  """Evaluates a checkpoint of a run at the length of each of its phases.

  A row of all held-out text comes first. Where `corpus.source` has several
  entries, a row for each follows that has two held-out documents.

  Args:
    workdir: a run's folder, str or path.
    step: int, or "best"; the newest checkpoint by default.
    hosts: `Hosts`, all of which call this; by default this process is alone.

  Yields:
    dicts of figures, as rows of metrics.jsonl have them.

  Raises:
    UserError: no such run or checkpoint.
  """
  workdir = paths.as_path(workdir)
  run = run_lib.load_run(workdir)
  abstract = run_lib.abstract_sharded_state(run).params
  step, params, meta = checkpoints.load_params(
    workdir, abstract, step, hosts=hosts
  )
  run_lib.check_corpus(run, step, meta["corpus_fingerprint"])
  for name in active_phases(run.config):
    row = {"step": step, "split": "eval", "phase": name}
    row["max_seq_length"] = run.config[name].max_seq_length
    yield row | make_evaluate(run, name, params)(params)
    for number, spec in run_lib.held_out_sources(run).items():
      figures = make_evaluate(run, name, params, number)(params)
      yield row | {"source": spec} | figures


def evaluate_on_all_hosts(workdir, step=None):
  """Evaluates a checkpoint with all processes of the command.

  Process 0 prints the rows as JSON to standard output, and what they mean
  beside guessing to standard error.

  Args:
    workdir: a run's folder, str or path.
    step: int, or "best"; the newest checkpoint by default.

  Raises:
    UserError: see `evaluate`.
  """
  with joined() as hosts:
    rows = []
    for row in evaluate(workdir, step, hosts):
      print(json.dumps(row), flush=True)
      rows.append(row)
    if hosts.is_first:
      for line in explain(workdir, rows):
        print(line, file=sys.stderr)


def explain(workdir, rows):
  """Says what held-out figures mean beside guessing.

  Args:
    workdir: a run's folder, str or path.
    rows: list of what `evaluate` yields.

  Returns:
    list of str, a line for each row but those of single sources.
  """
  run = run_lib.load_run(paths.as_path(workdir))
  settings = run.config.corpus
  _, held_out = split_documents(run.corpus.documents, settings.eval_fraction)
  guessing = frequency_loss(
    run.corpus, training_documents(settings, run.corpus), held_out
  )
  return [
    f"{row['phase']}, {row['max_seq_length']} tokens, held out: guessing a "
    f"masked token by word frequency alone scores {guessing:.2f}, this model "
    f"{row['mlm_loss']:.2f} (lower is better); the commoner label of the next "
    f"sentence is right in {_commoner(row['nsp_base_rate']):.1%}, this model's "
    f"in {row['nsp_accuracy']:.1%}"
    for row in rows
    if "source" not in row
  ]


def _commoner(share):
  """Returns the share of the commoner of two labels."""
  return max(share, 1 - share)
