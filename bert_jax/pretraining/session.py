"""A pretraining run from its first start to its end, over any interruptions.

Where a run starts from, in this order:
  1. the newest whole checkpoint in <workdir>/checkpoints
  2. the model of --init (see initialization.py)
  3. fresh weights from config.seed
A run that is killed at any moment and started again has the same loss at every
later step, to the bit, as one that was not killed.
"""

import contextlib
import signal
import time

import jax

from bert_jax.config import (
  PHASES,
  active_phases,
  num_train_steps,
  phase_of_step,
  validate,
)
from bert_jax.data import corpus_cache, preparation
from bert_jax.data.pipeline import iterate_batches
from bert_jax.distributed import consistency
from bert_jax.distributed.hosts import Hosts
from bert_jax.distributed.joining import joined
from bert_jax.errors import UserError
from bert_jax.model.bert import count_params
from bert_jax.pretraining import initialization, objective
from bert_jax.pretraining import run as run_lib
from bert_jax.pretraining.evaluation import make_evaluate
from bert_jax.sharding import rows as rows_lib
from bert_jax.storage import (
  checkpoints,
  metric_log,
  paths,
  program_cache,
  trial,
)
from bert_jax.storage import workdir as workdir_lib
from bert_jax.storage.access import storage_errors_told
from bert_jax.training import flops, signals
from bert_jax.training import loop as loop_lib
from bert_jax.training.host_memory import keep_freed_memory


def prepare(config, workdir, init=None):
  """Prepares the corpus of a run on this machine, without training.

  Args:
    config: the run's settings.
    workdir: its folder, str or path.
    init: `initialization.Init`, the model to start from, or None.

  Raises:
    UserError: settings, text or workdir can't be used.
  """
  workdir = paths.as_path(workdir)
  with workdir_lib.run_lock(workdir):
    config, init = initialization.begin(config, workdir, init, Hosts())
    validate(config)
    preparation.prepare(config, workdir, init.extend_vocab if init else 0)


def prepare_part(config, workdir, number, num_parts):
  """Encodes one of several parts of a corpus; see `preparation`."""
  validate(config)
  preparation.prepare_part(config, workdir, number, num_parts)


def train_on_all_hosts(config, workdir, init=None):
  """Trains as one of the hosts of a slice, or alone.

  Args:
    config: the run's settings.
    workdir: its folder, str or path.
    init: `initialization.Init`, the model to go on with, or None.

  Returns:
    the exit status: 0 at the end and after a preemption, which is expected;
    128 + SIGINT where somebody at the keyboard stopped a run of one process.

  Raises:
    UserError: see `train`.
  """
  with joined(is_restarted=True) as hosts:
    if hosts.is_alone:
      signals.raise_on_signals()
    try:
      stopped_by = train(config, workdir, hosts, init)
    except signals.Stopped as e:
      print(f"train: stopped by {e}; start again to go on")
      stopped_by = e.number
  if stopped_by == signal.SIGINT and hosts.is_alone:
    return 128 + stopped_by
  return 0


def train(config, workdir, hosts, init=None):
  """Trains a run to its end, or until a signal asks it to stop.

  Args:
    config: the run's settings.
    workdir: its folder, str or path.
    hosts: `Hosts`.
    init: `initialization.Init`, the model to go on with, or None.

  Returns:
    the number of the signal that stopped the run, or None at its end.

  Raises:
    UserError: settings, text or workdir are not as they must be, or the loss
      is not finite any more.
  """
  started = time.monotonic()
  keep_freed_memory()
  workdir = paths.as_path(workdir)
  consistency.compare(hosts, consistency.software(config))
  with storage_errors_told(workdir), _locked(workdir, hosts):
    config, init = initialization.begin(config, workdir, init, hosts)
    validate(config)
    consistency.compare(hosts, consistency.devices())
    run_lib.create_mesh(config)  # raises before the corpus is prepared
    program_cache.keep_programs(workdir, hosts)
    trial.check_round_trip(workdir, hosts)
    corpus = _open_corpus(config, workdir, hosts, init)
    run = run_lib.create_run(config, corpus)
    run = initialization.with_teacher(run, workdir, init)
    manager = checkpoints.create_manager(config.checkpoint, workdir)
    try:
      with storage_errors_told(workdir):
        return _train_from_newest(run, workdir, manager, hosts, init, started)
    except UserError:
      raise
    except BaseException as e:
      hosts.fail(e)  # else closing waits for hosts that never come
      raise
    finally:
      with _signals_deferred(hosts):
        manager.close()


def _locked(workdir, hosts):
  if hosts.is_first:
    return workdir_lib.run_lock(workdir)
  return contextlib.nullcontext()


def _open_corpus(config, workdir, hosts, init):
  """Prepares the corpus on the first host and opens it on all."""

  def prepare_on_first():
    workdir_lib.check_config(config, workdir)
    extend_vocab = init.extend_vocab if init else 0
    return str(preparation.prepare(config, workdir, extend_vocab))

  directory = hosts.on_first(prepare_on_first)
  corpus = corpus_cache.open_corpus(directory, needs_all=True)
  consistency.compare(hosts, {"the corpus' fingerprint": corpus.fingerprint})
  return corpus


def _train_from_newest(run, workdir, manager, hosts, init, started):
  state, meta = _restore_or_create(run, workdir, manager, hosts, init)
  is_evaluated = meta["evaluated"] is not None
  num_steps = num_train_steps(run.config)
  if int(state.step) >= num_steps and is_evaluated:
    print(f"train: {workdir} is finished: all {num_steps:,} steps are done")
    return None
  device = jax.devices()[0]
  print(
    f"train: {jax.device_count()} x {device.device_kind}, "
    f"{count_params(state.params, run.bert_config):,} parameters, "
    f"steps {int(state.step):,} to {num_steps:,}"
  )
  writer = None  # the metrics are global: the first host writes them
  if hosts.is_first:
    fields = (
      *metric_log.FIELDS,
      *(["distillation_loss"] if run.teacher else []),
    )
    metric_log.tell_changes(workdir, meta.get("metrics"))
    writer = metric_log.MetricWriter(workdir, int(state.step), fields)

  def save(state, evaluated):
    signature = writer and writer.signature
    _save(run, manager, state, evaluated, signature)
    note_programs()

  def note_programs():
    if hosts.is_first:
      program_cache.note_programs(workdir)

  def save_figures(step, evaluated):
    if hosts.is_first:
      checkpoints.save_figures(manager, step, evaluated)

  loop = loop_lib.Loop(
    run.config,
    run.mesh,
    writer,
    save,
    save_figures,
    _summary,
    hosts,
    started,
    is_evaluated,
    note_programs,
  )
  try:
    state, stopped_by = loop_lib.train(loop, create_stages(run, state), state)
    with _signals_deferred(hosts):
      manager.wait_until_finished()
    if stopped_by:
      name = signal.Signals(stopped_by).name
      seconds = time.monotonic() - loop.signal_times[0]
      print(
        f"train: stopped by {name}; state is saved, {seconds:.1f} s "
        "after the signal"
      )
      return stopped_by
  finally:
    if writer:
      writer.close()
  print(f"train: done, {num_steps:,} steps; everything lies in {workdir}")
  return None


def _signals_deferred(hosts):
  """Defers signals until a save is complete; JAX does so on several hosts."""
  return signals.deferred() if hosts.is_alone else contextlib.nullcontext()


def _save(run, manager, state, evaluated, signature=None):
  checkpoints.save(
    manager,
    state,
    run.config,
    run.corpus.fingerprint,
    evaluated,
    phase_of_step(run.config, int(state.step)),
    run.corpus.manifest["crc32"].get("vocab.txt"),
    signature,
  )


def _restore_or_create(run, workdir, manager, hosts, init):
  """Returns (`TrainState`, what was saved beside it)."""
  found = checkpoints.restore_newest(
    manager, run_lib.abstract_sharded_state(run), hosts
  )
  if found:
    _check_fits(run, *found)
  if hosts.is_first:
    workdir_lib.save_config(run.config, workdir)
  if found:
    state, meta = found
    print(f"train: continuing after step {int(state.step):,}")
    return state, meta
  _tell_beginning(workdir, hosts)
  fresh = {"evaluated": {}}  # nothing is to be caught up on
  if init is None or not init.source:
    return run_lib.create_state(run), fresh
  state = initialization.create_initial_state(run, init)
  # A restart reads this checkpoint and not the source.
  _save(run, manager, state, None)
  manager.wait_until_finished()
  return state, fresh


def _tell_beginning(workdir, hosts):
  """Says that steps are done again, as after a kill before the first save."""
  rows = metric_log.load_rows(workdir) if hosts.is_first else []
  if rows:
    print(
      f"train: {workdir} has metrics up to step {rows[-1]['step']:,} but no "
      "checkpoint; beginning again at step 0"
    )


def _check_fits(run, state, meta):
  """Raises UserError if a checkpoint can't continue with a run's settings."""
  step = int(state.step)
  saved = workdir_lib.with_defaults(meta["config"])
  workdir_lib.check_same(run.config, saved, f"checkpoint {step}")
  run_lib.check_corpus(run, step, meta["corpus_fingerprint"])
  _check_phase_lengths(saved, run.config, step)


def _check_phase_lengths(saved, config, step):
  """Raises UserError if phases that are over were to get other lengths."""
  end = 0
  for name in active_phases(saved):
    begin, end = end, end + saved[name].num_steps
    if step <= begin:
      break
    asked, done = config[name].num_steps, min(step, end) - begin
    # The last phase of a finished run may be extended.
    is_over = step >= end and end < num_train_steps(saved)
    if asked < done or (is_over and asked != saved[name].num_steps):
      least = f"{done}" if is_over else f"at least {done}"
      raise UserError(
        f"config.{name}.num_steps is {asked}; expected {least}, as step {step} "
        f"is done (set --config.{name}.num_steps)"
      )


def create_stages(run, state):
  """Builds the phases of a run.

  Args:
    run: `Run`.
    state: `TrainState` of arrays or shapes.

  Returns:
    list of `loop.Stage`; a phase without steps is left out.
  """
  stages, end = [], 0
  for name in PHASES:
    begin, end = end, end + run.config[name].num_steps
    if end > begin:
      stages.append(_create_stage(run, name, begin, end, state))
  return stages


def _create_stage(run, name, begin, end, state):
  phase = run.config[name]

  def batches(step):
    return iterate_batches(
      run_lib.training_examples(run, name),
      phase.batch_size,
      step - begin,
      end - begin,
      rows_lib.local_rows(run.mesh, phase.batch_size),
    )

  return loop_lib.Stage(
    name=name,
    end=end,
    batch_size=phase.batch_size,
    max_seq_length=phase.max_seq_length,
    flops_per_step=flops.count_train_flops(
      run.bert_config,
      phase.batch_size,
      phase.max_seq_length,
      phase.max_predictions,
    ),
    train_step=objective.make_train_step(run, name, state),
    abstract_batches=[run_lib.abstract_batch(run, name)],
    iterate_batches=batches,
    evaluate=make_evaluate(run, name, state.params),
    constants=(run.teacher.params,) if run.teacher else (),
  )


def _summary(row):
  nsp = f"NSP {row['nsp_loss']:.4f} (accuracy {row['nsp_accuracy']:.3f}"
  if row["split"] == "eval":
    base_rate = max(row["nsp_base_rate"], 1 - row["nsp_base_rate"])
    nsp += f", base rate {base_rate:.3f}"
  teacher = ""
  if "distillation_loss" in row:
    teacher = f", teacher {row['distillation_loss']:.4f}"
  return (
    f"loss {row['loss']:.4f}, masked-LM {row['mlm_loss']:.4f} (accuracy "
    f"{row['mlm_accuracy']:.3f}), {nsp}){teacher}"
  )
