"""The training loop: steps, reports, evaluation, checkpoints, signals.

It runs a list of stages, such as the two phases of pretraining or one
fine-tuning. The train steps of all stages are compiled before the first step,
so that no run waits for the compiler, or fails in it, hours later.
"""

import concurrent.futures
import contextlib
import dataclasses
import datetime
import itertools
import time
from collections.abc import Callable

import jax
import ml_collections
import tqdm

from bert_jax.distributed.hosts import Hosts
from bert_jax.distributed.stopping import make_stopping
from bert_jax.errors import UserError
from bert_jax.hlo import memory
from bert_jax.sharding import compiler_options, partitioning
from bert_jax.sharding import rows as rows_lib
from bert_jax.training import flops, signals, step_means
from bert_jax.training.intervals import Intervals
from bert_jax.training.step_clock import StepClock

# Updates skipped in a row, for a loss or gradient that is not finite, before
# the run stops.
MAX_SKIPPED_STEPS = 10


@dataclasses.dataclass(frozen=True)
class Stage:
  """Consecutive steps of one kind.

  Attributes:
    name: such as "phase1".
    end: the step with which it ends, counted over all stages.
    batch_size: sequences a step, over all devices.
    max_seq_length: slots a sequence; the mean where batches differ.
    flops_per_step: model FLOPs, over all devices; the mean likewise.
    train_step: jitted (state, batch, *constants) -> (state, metrics); see
      `step.py`.
    abstract_batches: list of dicts of `ShapeDtypeStruct` with shardings: the
      shapes that a batch may have, the largest first.
    iterate_batches: function of the steps done so far to an iterator over the
      rows that this process feeds, dicts of numpy arrays, to the stage's end.
    evaluate: function of params to a dict of floats.
    constants: what every train step takes besides: a teacher's parameters.
  """

  name: str
  end: int
  batch_size: int
  max_seq_length: int
  flops_per_step: float
  train_step: Callable
  abstract_batches: list
  iterate_batches: Callable
  evaluate: Callable
  constants: tuple = ()


@dataclasses.dataclass(frozen=True)
class Loop:
  """What all stages share.

  Attributes:
    config: the run's settings.
    mesh: `jax.sharding.Mesh`.
    writer: `MetricWriter`, or None where rows go nowhere.
    save: function (state, held-out row of this step or None) that begins to
      write a checkpoint.
    save_figures: function (step, held-out row) that adds the row to the
      checkpoint of a step saved without.
    summary: function of a row of metrics to a short text.
    hosts: `Hosts`; this process alone by default.
    started: `time.monotonic()` when the run was started; now by default.
    is_evaluated: whether the state that the run begins with has been evaluated
      if it had to be. A signal leaves no time for it.
    note_programs: function without arguments, called when all train steps are
      compiled.
    signal_times: list, gets `time.monotonic()` of the signal that stops a run.
  """

  config: ml_collections.ConfigDict
  mesh: jax.sharding.Mesh
  writer: object
  save: Callable
  save_figures: Callable
  summary: Callable
  hosts: Hosts = dataclasses.field(default_factory=Hosts)
  started: float = dataclasses.field(default_factory=time.monotonic)
  is_evaluated: bool = True
  note_programs: Callable = lambda: None
  signal_times: list = dataclasses.field(default_factory=list)


def train(loop, stages, state):
  """Runs every stage from where the state is.

  Args:
    loop: `Loop`.
    stages: list of `Stage`, in order.
    state: `TrainState`.

  Returns:
    (`TrainState` at the end, number of the signal that stopped it or None).

  Raises:
    UserError: the loss is not finite any more.
  """
  step = int(state.step)
  if not loop.is_evaluated:
    _catch_up_on_evaluation(loop, stages, state)
  stages = [stage for stage in stages if step < stage.end]
  if not stages:
    return state, None
  started = time.monotonic()
  programs = compile_stages(stages, state)
  loop.note_programs()
  names = " and ".join(stage.name for stage in stages)
  print(f"train: compiled {names} in {time.monotonic() - started:.1f} s")
  for stage, of_stage in zip(stages, programs, strict=True):
    print(_figures(stage, of_stage[0], state))
  # Barrier: Gloo collectives on CPU time out after 30 s.
  loop.hosts.gather(None)
  with contextlib.ExitStack() as stack:
    if loop.hosts.is_alone:
      stack.enter_context(signals.handlers_restored())
    stopping = make_stopping(loop.hosts)
    if loop.hosts.is_alone:
      signals.note_times(loop.signal_times)
    for stage, of_stage in zip(stages, programs, strict=True):
      train_step = _choose_by_shape(stage, of_stage)
      state, stopped_by = _train_stage(
        loop, stage, train_step, stages[-1].end, state, stopping
      )
      if stopped_by:
        return state, stopped_by
    # A signal may have come during the last evaluation or save.
    if loop.hosts.is_alone:
      return state, stopping()
  return state, None


def compile_stages(stages, state):
  """Compiles the train steps of all stages, side by side.

  Args:
    stages: list of `Stage`.
    state: `TrainState` of arrays, or of shapes with shardings.

  Returns:
    a list for each stage: compiled programs, each (state, batch, *constants)
    -> (state, metrics), one for each of its `abstract_batches`.
  """
  # Tracing is Python and runs one at a time; compilation runs in parallel.
  lowered = [
    stage.train_step.lower(state, batch, *stage.constants)
    for stage in stages
    for batch in stage.abstract_batches
  ]
  with concurrent.futures.ThreadPoolExecutor(len(lowered)) as threads:
    programs = iter(list(threads.map(compiler_options.compile_step, lowered)))
  return [
    list(itertools.islice(programs, len(stage.abstract_batches)))
    for stage in stages
  ]


def _choose_by_shape(stage, programs):
  """Returns the train step that runs the program of its batch's shapes."""
  by_shape = {
    _shapes(batch): program
    for batch, program in zip(stage.abstract_batches, programs, strict=True)
  }

  def train_step(state, batch):
    return by_shape[_shapes(batch)](state, batch, *stage.constants)

  return train_step


def _shapes(batch):
  return tuple((name, batch[name].shape) for name in sorted(batch))


def _figures(stage, program, state):
  """Returns a line on the FLOPs and the memory of a step."""
  params_bytes, opt_bytes = map(
    partitioning.device_bytes, (state.params, state.opt_state)
  )
  made = memory.count_step_bytes(program, jax.default_backend())
  line = (
    f"{stage.name}: {stage.batch_size:,} x {stage.max_seq_length:.4g}, "
    f"{stage.flops_per_step / 1e12:.4g} model TFLOPs a step; GB a device: "
    f"parameters {params_bytes / 1e9:.3f}, optimizer {opt_bytes / 1e9:.3f}, "
    f"activations and temporaries {made / 1e9:.3f}"
  )
  peak = _peak_flops()
  if peak:
    line += f"; {1e3 * stage.flops_per_step / peak:.2f} ms a step at the peak"
  return line


def _peak_flops():
  """Returns FLOP/s of all devices together, or None if not known."""
  peak = flops.peak_flops(jax.devices()[0])
  return peak and peak * jax.device_count()


def _train_stage(loop, stage, train_step, num_steps, state, stopping):
  """Trains one stage from where the state is.

  Args:
    loop: `Loop`.
    stage: `Stage`.
    train_step: function (state, batch) -> (state, metrics), compiled.
    num_steps: steps of all stages.
    state: `TrainState`, its step within the stage.
    stopping: see `stopping.make_stopping`.

  Returns:
    (`TrainState` at the end, number of the signal that ended it or None).
  """
  first = int(state.step)
  batches = stage.iterate_batches(first)
  clock = _create_clock(stage)
  intervals = Intervals(loop.config, loop.hosts, first, clock)
  means = None
  with tqdm.tqdm(
    desc=stage.name, total=num_steps, initial=first, unit="step", disable=None
  ) as bar:
    for step in range(first + 1, stage.end + 1):
      state, step_metrics = take_step(
        train_step, state, batches, loop.mesh, clock
      )
      means = step_means.add_step(means, step_metrics)
      if step == first + 1:
        seconds = time.monotonic() - loop.started
        bar.write(f"{stage.name}: first step done {seconds:.1f} s after start")
      bar.update()
      intervals.count_step(step, step_metrics)
      # Asked once a step: a step that ends the loop is also saved.
      stopped_by = stopping()
      if stopped_by and not loop.signal_times:  # another host got the signal
        loop.signal_times.append(time.monotonic())
      # A preempted host has 30 s left, which belong to the checkpoint.
      evaluates = not stopped_by and _is_evaluated(loop.config, stage, step)
      # A step that was evaluated is also saved: it may be the best.
      saves = stopped_by or evaluates or intervals.save_is_due(step)
      # A checkpoint ends a row, so that a run which goes on from it has the
      # same rows.
      if saves or intervals.row_is_due(step):
        row = _train_row(step, stage.name, means, step_metrics, clock)
        means = None
        _write(loop, row)
        intervals.note_row(step)
        _show(bar, row, loop.summary, num_steps, clock)
      evaluated = None
      if evaluates:
        with clock.paused():
          evaluated = _evaluate(loop, stage, step, state)
          _show(bar, evaluated, loop.summary, num_steps, clock)
      if saves:
        with clock.paused():
          if loop.writer:
            loop.writer.flush()
          loop.save(state, evaluated)
        intervals.note_save(step)
      if stopped_by:
        break
  return state, stopped_by


def _is_evaluated(config, stage, step):
  """Tells whether a step of a stage is followed by an evaluation."""
  return step == stage.end or step % config.eval.every_steps == 0


def _evaluate(loop, stage, step, state):
  """Evaluates a state and returns the row."""
  row = {"step": step, "split": "eval", "phase": stage.name}
  row |= stage.evaluate(state.params)
  _write(loop, row)
  return row


def _write(loop, row):
  if loop.writer:
    loop.writer.write(row)


def _catch_up_on_evaluation(loop, stages, state):
  """Makes the evaluation that a signal left out when the state was saved."""
  step = int(state.step)
  stage = next(stage for stage in stages if step <= stage.end)
  if step and _is_evaluated(loop.config, stage, step):
    row = _evaluate(loop, stage, step, state)
    loop.save_figures(step, row)
    print(f"step {step:,} held out: {loop.summary(row)}")


def take_step(train_step, state, batches, mesh, clock):
  """Fetches a batch and trains on it.

  Args:
    train_step: function (state, batch) -> (state, metrics), compiled.
    state: `TrainState`; it is donated.
    batches: iterator of this process' rows.
    mesh: `jax.sharding.Mesh`.
    clock: `StepClock`, which counts the step and the wait for its batch.

  Returns:
    (`TrainState`, dict of metrics), as the program gives them.
  """
  with clock.waiting():
    batch = next(batches)
  batch = rows_lib.global_batch(mesh, batch)
  clock.let_finish()
  state, metrics = train_step(state, batch)
  clock.count_step(metrics)
  return state, metrics


def _create_clock(stage):
  return StepClock(
    stage.batch_size,
    stage.max_seq_length,
    stage.flops_per_step,
    _peak_flops(),
  )


def _train_row(step, name, means, step_metrics, clock):
  """Fetches the means since the last row and adds the speed.

  Args:
    step: int.
    name: of the stage.
    means: see `step_means.add_step`.
    step_metrics: of the step itself; the learning rate is reported as it is.
    clock: `StepClock`.

  Returns:
    dict, the row.
  """
  values = step_means.fetch_means(means)
  last = jax.device_get(step_metrics)
  skipped = int(last["skipped_steps"])
  if skipped >= MAX_SKIPPED_STEPS:
    raise UserError(
      f"the loss or gradient was not finite in {skipped} steps in a row up to "
      f"step {step}; the last checkpoint is from before (lower "
      "--config.optimizer.learning_rate, or raise warmup_steps)"
    )
  del values["skipped_steps"]
  values["learning_rate"] = float(last["learning_rate"])
  row = {"step": step, "split": "train", "phase": name} | values
  return row | clock.rates(values.get("fill"))


def _show(bar, row, summary, num_steps, clock):
  """Shows a row: in the bar on a terminal, as a line elsewhere."""
  if row["split"] == "eval":
    bar.write(f"step {row['step']:,} held out: {summary(row)}")
  elif bar.disable:
    left = clock.seconds_per_step * (num_steps - row["step"])
    print(
      f"step {row['step']:,}/{num_steps:,} {row['phase']}: {summary(row)}, "
      f"{_speed(row, clock)}, {datetime.timedelta(seconds=round(left))} left",
      flush=True,
    )
  else:
    bar.set_postfix_str(f"{summary(row)}, {_speed(row, clock)}")


def _speed(row, clock):
  speed = (
    f"{row.get('sequences_per_second', 0):,.0f} sequences/s, "
    f"{1e3 * clock.seconds_per_step:,.1f} ms a step"
  )
  return f"{speed}, MFU {row['mfu']:.2f}" if row.get("mfu") else speed
