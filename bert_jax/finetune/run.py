"""One fine-tuning: reads the data, trains, saves the best model by metric."""

import contextlib
import dataclasses

import jax
import ml_collections
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from bert_jax.errors import UserError
from bert_jax.finetune import card
from bert_jax.finetune import model as model_lib
from bert_jax.finetune.config import (
  CHANGEABLE,
  default_config,
  num_train_steps,
  resolve,
)
from bert_jax.finetune.features import Features
from bert_jax.finetune.metrics import check_libraries
from bert_jax.finetune.model import TaskModel
from bert_jax.finetune.stage import create_stage
from bert_jax.finetune.tasks import KINDS
from bert_jax.model.bert import count_params
from bert_jax.sharding import partitioning
from bert_jax.sharding import rows as rows_lib
from bert_jax.storage import checkpoints, metric_log, paths, trial
from bert_jax.storage import workdir as workdir_lib
from bert_jax.training import loop as loop_lib
from bert_jax.training import signals
from bert_jax.training.optimizer import create_optimizer
from bert_jax.training.train_state import create_train_state
from bert_jax.weights import pretrained
from bert_jax.weights.parameters import checksum


@dataclasses.dataclass(frozen=True)
class FineTuning:
  """A fine-tuning without its state; the seed is the settings'.

  Attributes:
    model: `TaskModel`; its settings say the numbers of steps.
    train: `Features`.
    dev: `Features`.
    dev_rows: list of rows.
    metric_names: names of the task's metrics; the first one chooses.
    fingerprint: str, tells the data and the weights to start from.
  """

  model: TaskModel
  train: Features
  dev: Features
  dev_rows: list
  metric_names: tuple[str, ...]
  fingerprint: str

  @property
  def config(self) -> ml_collections.ConfigDict:
    """The run's settings."""
    return self.model.config

  @property
  def num_steps(self):
    """Length of the run."""
    return num_train_steps(self.config, len(self.train))

  @property
  def optimizer(self) -> optax.GradientTransformation:
    """The optimizer of the run."""
    return create_optimizer(self.config.optimizer, self.num_steps)


def create_fine_tuning(config, source):
  """Reads data and model.

  Args:
    config: validated settings.
    source: what `--init` says.

  Returns:
    `FineTuning`.

  Raises:
    UserError: data, model, settings and devices do not go together.
  """
  check_libraries()
  found, head = model_lib.load_init(source, config)
  kind = KINDS[config.task.kind]
  read = kind.read_training_rows or kind.read_rows
  train_rows = read(config.data.train, config, labelled=True)
  dev_rows = kind.read_rows(config.data.dev, config, labelled=True)
  labels = _label_names(config, kind, train_rows)
  model = model_lib.create_task_model(config, found, head, labels)
  rows = config.train.batch_size // config.optimizer.grad_accumulation
  rows_lib.check_batch_size(model.mesh, "train.batch_size", rows)
  train = model_lib.encode(model, train_rows, labelled=True)
  dev = model_lib.encode(model, dev_rows, labelled=True)
  print(
    f"data: {len(train_rows):,} rows to train on ({len(train):,} sequences, "
    f"padded to {' or '.join(map(str, train.lengths))} tokens), "
    f"{len(dev_rows):,} held out"
  )
  weights = model.pretrained.params if config.pretrained else {}
  return FineTuning(
    model=dataclasses.replace(model, config=resolve(config, len(train))),
    train=train,
    dev=dev,
    dev_rows=dev_rows,
    metric_names=_metric_names(model, dev, dev_rows),
    fingerprint=f"{checksum(weights):08x}-{train.fingerprint():08x}",
  )


def _label_names(config, kind, rows):
  """Returns the labels that the settings name, or else those of the data."""
  given = [label.strip() for label in config.data.labels.split(",")]
  labels = tuple(filter(None, given)) or kind.label_names(rows)
  if config.task.kind == "classification" and len(labels) < 2:
    raise UserError(
      f"{config.data.train} has the label {labels[0]} only; expected two or "
      "more (see --config.data.label)"
    )
  if len(set(labels)) < len(labels):
    raise UserError(
      f"config.data.labels is {config.data.labels!r}; expected every label once"
    )
  return labels


def _metric_names(model, dev, dev_rows):
  """Returns the task's metrics, the one that chooses first."""
  shape = model_lib.abstract_logits(model, dev).shape
  nothing = np.zeros((len(dev), *shape[1:]), np.float32)
  predictions = model_lib.decode(model, nothing, dev_rows, dev)
  names = tuple(model.kind.score(predictions, dev_rows, model.labels))
  chosen = model.config.task.metric or names[0]
  if chosen not in names:
    raise UserError(
      f"config.task.metric is {chosen!r}; expected one of {', '.join(names)} "
      "(set --config.task.metric)"
    )
  return chosen, *(name for name in names if name != chosen)


def with_seed(run, seed):
  """Returns the same fine-tuning with another seed."""
  config = run.config.copy_and_resolve_references()
  config.seed = seed
  return dataclasses.replace(
    run, model=dataclasses.replace(run.model, config=config)
  )


def train(run, config, workdir, hosts):
  """Trains a run to its end, or until a signal asks it to stop.

  Args:
    run: `FineTuning`.
    config: the settings as they were given, with the run's seed.
    workdir: its folder, `epath.Path`.
    hosts: `Hosts`, all of which call this.

  Returns:
    (the row of metrics.jsonl of the best evaluation or None, the number of the
    signal that stopped the run or None).

  Raises:
    UserError: the workdir holds another run, or the loss is not finite.
  """

  def begin():
    workdir_lib.check_config(config, workdir, CHANGEABLE, default_config)
    workdir_lib.save_config(config, workdir)

  with contextlib.ExitStack() as stack:
    if hosts.is_first:
      stack.enter_context(workdir_lib.run_lock(workdir))
    hosts.on_first(begin)
    trial.check_round_trip(workdir, hosts)
    manager = checkpoints.create_manager(config.checkpoint, workdir, best=None)
    try:
      stopped_by = _train_from_newest(run, workdir, manager, hosts)
    except UserError:
      raise
    except BaseException as e:
      hosts.fail(e)  # or closing would wait for hosts that do not come
      raise
    finally:
      # Among several hosts signals are JAX's.
      with signals.deferred() if hosts.is_alone else contextlib.nullcontext():
        manager.close()
    return hosts.on_first(lambda: _best_row(run, workdir)), stopped_by


def _best_row(run, workdir):
  """Returns the best evaluation so far, a row of metrics.jsonl, or None."""
  chosen = run.metric_names[0]
  rows = [
    row
    for row in metric_log.load_rows(workdir)
    if row["split"] == "eval" and row[chosen] is not None
  ]
  return max(rows, key=lambda row: row[chosen], default=None)


def _train_from_newest(run, workdir, manager, hosts):
  state, meta = _restore_or_create(run, manager, hosts)
  is_evaluated = meta["evaluated"] is not None
  first_step = int(state.step)
  if first_step >= run.num_steps and is_evaluated:
    print(f"finetune: {workdir} is finished: {run.num_steps:,} steps are done")
    return None
  print(
    f"finetune: {jax.device_count()} x {jax.devices()[0].device_kind}, "
    f"{count_params(state.params, run.model.bert_config):,} parameters, steps "
    f"{first_step:,} to {run.num_steps:,}, seed {run.config.seed}"
  )
  writer = None  # the first host's rows are those of all
  if hosts.is_first:
    fields = metric_log.row_fields(run.metric_names)
    metric_log.tell_changes(workdir, meta.get("metrics"))
    writer = metric_log.MetricWriter(workdir, first_step, fields)

  def save(state, evaluated):
    checkpoints.save(
      manager,
      state,
      run.config,
      run.fingerprint,
      evaluated,
      metrics=writer and writer.signature,
    )

  def save_figures(step, evaluated):
    if hosts.is_first:
      checkpoints.save_figures(manager, step, evaluated)

  def summary(row):
    names = [name for name in ("loss", *run.metric_names) if name in row]
    return ", ".join(f"{name} {row[name]:.4f}" for name in names)

  loop = loop_lib.Loop(
    run.config,
    run.model.mesh,
    writer,
    save,
    save_figures,
    summary,
    hosts,
    is_evaluated=is_evaluated,
  )
  evaluate = _make_evaluate(run, workdir, state.params, hosts)
  stage = create_stage(run, state, evaluate)
  try:
    _, stopped_by = loop_lib.train(loop, [stage], state)
  finally:
    if writer:
      writer.close()
  return stopped_by


def _restore_or_create(run, manager, hosts):
  """Returns (`TrainState`, what was saved beside it)."""
  abstract = abstract_state(run)
  found = checkpoints.restore_newest(manager, abstract, hosts)
  if found is None:
    return create_state(run), {"evaluated": {}}
  state, meta = found
  if meta["corpus_fingerprint"] != run.fingerprint:
    raise UserError(
      f"checkpoint {int(state.step)} was trained on other data or from other "
      f"weights ({meta['corpus_fingerprint']}); expected the same, found "
      f"{run.fingerprint} (use those, or another --workdir)"
    )
  print(f"finetune: continuing after step {int(state.step):,}")
  return state, meta


def create_state(run):
  """Makes the state before the first step; tells what it is made of.

  Args:
    run: `FineTuning`.

  Returns:
    `TrainState`, sharded over the mesh.
  """
  params, fresh = model_lib.create_params(run.model)
  if run.config.pretrained:
    pretrained.print_report(run.model.pretrained, fresh)
  else:
    print("init: config.pretrained is False: all weights are random")
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(run))
  create = jax.jit(
    lambda params: create_train_state(params, run.optimizer),
    out_shardings=shardings,
  )
  return create(params)


def abstract_state(run):
  """Returns shapes and shardings of the state, as it is restored to."""

  def create(key):
    params = model_lib.init_params(run.model.module, key)
    return create_train_state(params, run.optimizer)

  shapes = jax.eval_shape(create, jax.random.key(0))
  return partitioning.abstract_state(run.model.mesh, shapes, run.optimizer)


def _make_evaluate(run, workdir, params, hosts):
  """Builds the evaluation, which saves the best model and its predictions.

  A run that goes on from a checkpoint repeats the evaluations after that
  checkpoint, so the best model is that of a run without interruption.
  """
  model, chosen = run.model, run.metric_names[0]
  predict = model_lib.make_predict(model, params)
  gather = jax.jit(
    lambda params: params,
    out_shardings=NamedSharding(model.mesh, PartitionSpec()),
  )
  best_row = hosts.on_first(lambda: _best_row(run, workdir))
  best = (best_row or {}).get(chosen, -np.inf)

  def evaluate(params):
    nonlocal best
    logits = predict(params, run.dev)
    predictions = model_lib.decode(model, logits, run.dev_rows, run.dev)
    scores = model.kind.score(predictions, run.dev_rows, model.labels)
    if scores[chosen] > best:
      best = scores[chosen]
      whole = jax.device_get(gather(params))
      if hosts.is_first:
        _save_best(run, workdir, whole, predictions, scores)
    loss, weight = model.kind.loss(logits, run.dev.arrays["labels"])
    return {"loss": float(loss / weight)} | scores

  return evaluate


def _save_best(run, workdir, params, predictions, scores):
  model = run.model
  model_lib.save_model(
    workdir / pretrained.MODEL_DIR,
    params,
    model,
    card.model_card(model, scores),
  )
  path = paths.as_path(workdir) / model.kind.file_name
  model.kind.save_predictions(path, run.dev_rows, predictions)
