"""Pretrains BERT through both phases; resumes whatever the workdir holds.

    python -m bert_jax.train --config=configs/bert_base.py --workdir=W

Where a run starts from, in this order:
  1. the newest whole checkpoint in <workdir>/checkpoints
  2. fresh weights from config.seed
Prepares the corpus first if that has not been done. A run killed at any moment
and started again goes on as if nothing had been: the loss of every later step
is the same to the bit.
"""

import datetime
import signal
import sys

import jax
import tqdm
from etils import epath

from bert_jax import checkpointing, command, flops, metrics, partitioning
from bert_jax import run as run_lib
from bert_jax import steps as step_lib
from bert_jax import workdir as workdir_lib
from bert_jax.clock import StepClock
from bert_jax.config import num_train_steps, validate
from bert_jax.data.corpus import open_corpus
from bert_jax.data.pipeline import iterate_batches
from bert_jax.errors import UserError
from bert_jax.evaluate import make_evaluate
from bert_jax.host_memory import keep_freed_memory
from bert_jax.prepare import prepare

# Updates skipped in a row, for a loss or gradient that is not finite, before
# the run stops.
MAX_SKIPPED_STEPS = 10


def train(config, workdir):
  """Trains a run to its end, or until a signal asks it to stop.

  Args:
    config: the run's settings.
    workdir: its folder, str or path.

  Returns:
    the number of the signal that stopped the run, or None at its end.

  Raises:
    UserError: settings, text or workdir are not as they must be, or the loss
      is not finite any more.
  """
  validate(config)
  keep_freed_memory()
  workdir = epath.Path(workdir)
  with workdir_lib.run_lock(workdir):
    workdir_lib.check_config(config, workdir)
    run_lib.create_mesh(config)  # what does not fit is told before the work
    corpus = open_corpus(prepare(config, workdir))
    run = run_lib.create_run(config, corpus)
    workdir_lib.save_config(config, workdir)
    manager = checkpointing.create_manager(config.checkpoint, workdir)
    try:
      return _train_from_newest(run, workdir, manager)
    finally:
      manager.close()


def _train_from_newest(run, workdir, manager):
  state = _restore_or_create(run, manager)
  num_steps = num_train_steps(run.config)
  if int(state.step) >= num_steps:
    print(f"train: {workdir} is finished: all {num_steps:,} steps are done")
    return None
  device = jax.devices()[0]
  print(
    f"train: {jax.device_count()} x {device.device_kind}, "
    f"{sum(p.size for p in jax.tree.leaves(state.params)):,} parameters, "
    f"steps {int(state.step):,} to {num_steps:,}"
  )
  writer = metrics.MetricWriter(workdir, first_step=int(state.step))
  stop = _catch_signals()
  try:
    end = 0
    for name in run_lib.PHASES:
      begin, end = end, end + run.config[name].num_steps
      if not stop and int(state.step) < end:
        state = _train_phase(run, name, begin, state, manager, writer, stop)
  finally:
    writer.close()
  if stop:
    print(f"train: stopped by {signal.Signals(stop[0]).name}; state is saved")
    return stop[0]
  print(f"train: done, {num_steps:,} steps; everything lies in {workdir}")
  return None


def _restore_or_create(run, manager):
  found = checkpointing.restore_newest(
    manager, run_lib.abstract_sharded_state(run)
  )
  if found is None:
    return run_lib.create_state(run)
  state, meta = found
  if meta["corpus_fingerprint"] != run.corpus.fingerprint:
    raise UserError(
      f"checkpoint {int(state.step)} was trained on corpus "
      f"{meta['corpus_fingerprint']}; expected the same, found "
      f"{run.corpus.fingerprint} (set --config.corpus.dir to that corpus)"
    )
  print(f"train: continuing after step {int(state.step):,}")
  return state


def _catch_signals():
  """Returns a list that a SIGTERM or SIGINT will put its number in.

  The loop looks at it between steps; a second signal ends the process.
  """
  caught = []

  def note(number, frame):
    del frame
    caught.append(number)
    signal.signal(number, signal.SIG_DFL)

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, note)
  return caught


def _train_phase(run, name, begin, state, manager, writer, stop):
  """Trains one phase from where the state is.

  Args:
    run: `Run`.
    name: "phase1" or "phase2".
    begin: step at which the phase begins.
    state: `TrainState`, its step within the phase.
    manager: for checkpoints.
    writer: `MetricWriter`.
    stop: list; the phase ends early once something is in it.

  Returns:
    `TrainState` at the end.
  """
  config, phase = run.config, run.config[name]
  num_steps = num_train_steps(config)
  first, end = int(state.step), begin + phase.num_steps
  train_step = step_lib.make_train_step(
    config,
    phase,
    run.bert_config,
    run.masking_vocab,
    run.optimizer,
    num_steps,
    run.mesh,
    state,
  )
  evaluate = make_evaluate(run, name, state.params)
  batches = iterate_batches(
    run_lib.training_examples(run, name),
    phase.batch_size,
    first - begin,
    end - begin,
    partitioning.local_rows(phase.batch_size),
  )
  clock = _create_clock(run, phase)
  with tqdm.tqdm(
    desc=name, total=num_steps, initial=first, unit="step", disable=None
  ) as bar:
    for step in range(first + 1, end + 1):
      with clock.waiting():
        batch = next(batches)
      batch = partitioning.global_batch(run.mesh, batch)
      state, step_metrics = train_step(state, batch)
      clock.count_step(step_metrics)
      bar.update()
      # Looked at once a step: whatever ends the loop also saves.
      stopping = bool(stop)
      last = step == end or stopping
      if last or step % config.log.every_steps == 0:
        row = _train_row(step, name, step_metrics, clock)
        writer.write(row)
        _show(bar, row, num_steps, clock)
      if step == end or step % config.eval.every_steps == 0:
        with clock.paused():
          row = {"step": step, "split": "eval", "phase": name}
          row |= evaluate(state.params)
          writer.write(row)
          _show(bar, row, num_steps, clock)
      if last or step % config.checkpoint.every_steps == 0:
        with clock.paused():
          checkpointing.save(manager, state, config, run.corpus.fingerprint)
      if stopping:
        break
  return state


def _create_clock(run, phase):
  peak = flops.peak_flops(jax.devices()[0])
  return StepClock(
    phase.batch_size,
    phase.max_seq_length,
    flops.count_train_flops(
      run.bert_config,
      phase.batch_size,
      phase.max_seq_length,
      phase.max_predictions,
    ),
    peak and peak * jax.device_count(),
  )


def _train_row(step, name, step_metrics, clock):
  """Fetches a step's metrics and adds the speed since the last row."""
  values = {k: float(v) for k, v in jax.device_get(step_metrics).items()}
  skipped = int(values.pop("skipped_steps"))
  if skipped >= MAX_SKIPPED_STEPS:
    raise UserError(
      f"the loss or gradient was not finite in {skipped} steps in a row up to "
      f"step {step}; the last checkpoint is from before (lower "
      "--config.optimizer.learning_rate, or raise warmup_steps)"
    )
  row = {"step": step, "split": "train", "phase": name} | values
  return row | clock.rates(values["fill"])


def _show(bar, row, num_steps, clock):
  """Shows a row: in the bar on a terminal, as a line elsewhere."""
  shown = (
    f"loss {row['loss']:.4f}, masked-LM {row['mlm_loss']:.4f} (accuracy "
    f"{row['mlm_accuracy']:.3f}), NSP {row['nsp_loss']:.4f} (accuracy "
    f"{row['nsp_accuracy']:.3f})"
  )
  if row["split"] == "eval":
    base_rate = max(row["nsp_base_rate"], 1 - row["nsp_base_rate"])
    bar.write(
      f"step {row['step']:,} held out: {shown[:-1]}, base rate {base_rate:.3f})"
    )
  elif bar.disable:
    left = clock.seconds_per_step * (num_steps - row["step"])
    print(
      f"step {row['step']:,}/{num_steps:,} {row['phase']}: {shown}, "
      f"{row.get('sequences_per_second', 0):,.0f} sequences/s, "
      f"{datetime.timedelta(seconds=round(left))} left",
      flush=True,
    )
  else:
    bar.set_postfix(
      loss=f"{row['loss']:.3f}",
      mlm=f"{row['mlm_loss']:.3f}",
      mlm_acc=f"{row['mlm_accuracy']:.3f}",
      nsp_acc=f"{row['nsp_accuracy']:.3f}",
      seq_s=f"{row.get('sequences_per_second', 0):,.0f}",
    )


def main(argv):
  """Runs the command."""
  del argv
  stopped_by = train(*command.config_and_workdir())
  # Preemption is an expected end; somebody at the keyboard wanted a stop.
  if stopped_by == signal.SIGINT:
    sys.exit(128 + stopped_by)


if __name__ == "__main__":
  command.define_config_flags()
  command.run(main)
