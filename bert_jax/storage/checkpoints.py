"""Checkpoints with orbax, and finding the newest one that is not damaged.

The latest few stay, every k-th step if the settings say so, and the checkpoint
with the best held-out figure of the last phase. Each holds the train state and,
beside it, the settings, the corpus' fingerprint and a checksum per array (see
checksums.py). Saving is asynchronous; the checksums are computed on the device
at the moment of saving.
"""

import dataclasses
import itertools
import json
import math
import zlib

import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from bert_jax.config import flatten
from bert_jax.distributed.hosts import Hosts
from bert_jax.errors import UserError
from bert_jax.storage import (
  checkpoint_reader,
  checksums,
  files,
  metric_log,
  paths,
)
from bert_jax.storage import workdir as workdir_lib

# orbax writes it last; in a bucket only this file says that the checkpoint is
# complete.
COMMIT_FILE = "commit_success.txt"
# The held-out metric that says which checkpoint is best, and whether the
# smallest or the largest value is.
BEST = ("loss", "min")
# Where damaged checkpoints go, in a workdir.
BROKEN_DIR = "broken"


def create_manager(config, workdir, best=BEST):
  """Opens `<workdir>/checkpoints` for a run; all its processes do.

  Args:
    config: `config.checkpoint`.
    workdir: `epath.Path`.
    best: (metric, "min" or "max"), by which the best checkpoint is kept; None
      keeps no such.

  Returns:
    `ocp.CheckpointManager`; close it to wait for the last save.
  """
  directory = checkpoint_reader.directory(workdir)
  return checkpoint_reader.open_manager(
    workdir,
    preservation_policy=_Preserved(
      directory, config.keep, config.keep_every_steps, best
    ),
    create=True,
  )


@dataclasses.dataclass(frozen=True)
class _Preserved(preservation_policy.PreservationPolicy):
  """Which checkpoints orbax keeps.

  orbax's own policy for the best one reads its metric files when it opens the
  folder, and fails where one of them is broken.
  """

  directory: epath.Path
  keep: int
  keep_every_steps: int
  best: tuple | None

  def should_preserve(self, checkpoints, *, context):
    """Returns whether to keep each of `checkpoints`, which are in order."""
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept = {*steps[-self.keep :]}
    if self.best:
      kept.add(_find_best(self.directory, steps, self.best))
    if self.keep_every_steps:
      kept |= {step for step in steps if step % self.keep_every_steps == 0}
    return [step in kept for step in steps]


def _find_best(directory, steps, best):
  """Returns the step with the best held-out figure of the last phase, or None.

  Figures of two phases do not compare: longer sequences are easier, and a model
  of the phase before has never seen the last positions.
  """
  name, mode = best
  metas = {step: _load_meta(directory, step) for step in steps}
  phases = [metas[step]["phase"] for step in steps if metas[step]]
  figures = {
    step: (meta["evaluated"] or {}).get(name)
    for step, meta in metas.items()
    if meta and meta["phase"] == phases[-1]
  }
  figures = {step: x for step, x in figures.items() if x is not None}
  choose = {"min": min, "max": max}[mode]
  return choose(figures, key=figures.get) if figures else None


def _load_meta(directory, step):
  """Returns what was saved beside a state, or None where it can't be read."""
  try:
    meta = json.loads(_meta_path(directory, step).read_text())
    dict(meta["evaluated"] or {})
    return {"phase": None} | meta
  except (OSError, ValueError, KeyError, TypeError):
    return None  # still being written, or broken


def _meta_path(directory, step):
  return directory / str(step) / "meta" / "metadata"


def save(
  manager,
  state,
  config,
  fingerprint,
  evaluated=None,
  phase=None,
  vocab_crc32=None,
  metrics=None,
):
  """Begins to write a checkpoint; returns before it is on disk.

  Args:
    manager: from `create_manager`.
    state: `TrainState`; may be donated right after.
    config: the run's settings.
    fingerprint: str of the corpus.
    evaluated: held-out row of this very step, or None; the manager's metric
      in it says whether this is the best checkpoint of its phase.
    phase: str, the phase that made the step.
    vocab_crc32: int, CRC-32 of the workdir's vocab.txt; None where the model
      has its vocabulary elsewhere.
    metrics: dict, the `signature` of the run's `MetricWriter`, or None.
  """
  step = int(state.step)
  if step in manager.all_steps():
    return
  meta = {
    "step": step,
    "config": config.to_dict(),
    "corpus_fingerprint": fingerprint,
    "arrays": checksums.describe(state),
    "evaluated": evaluated and _finite_numbers(evaluated),
    "phase": phase,
    "vocab_crc32": vocab_crc32,
    "metrics": metrics,
  }
  meta = json.loads(json.dumps(meta))  # as it will be read
  meta["crc32"] = files.crc_of_json(meta)
  manager.save(
    step,
    args=ocp.args.Composite(
      state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
    ),
    force=True,
  )


def save_figures(manager, step, evaluated):
  """Adds held-out figures to a checkpoint that was saved without them.

  Args:
    manager: from `create_manager`; one process calls this.
    step: int.
    evaluated: held-out row of the step.
  """
  path = _meta_path(manager.directory, step)
  meta = json.loads(path.read_text())
  meta.pop("crc32", None)
  meta["evaluated"] = _finite_numbers(evaluated)
  meta["crc32"] = files.crc_of_json(meta)
  temporary = path.with_name("metadata.unfinished")
  temporary.write_text(json.dumps(meta))
  temporary.replace(path)


def _finite_numbers(row):
  return {
    key: value
    for key, value in row.items()
    if isinstance(value, float) and math.isfinite(value)
  }


def restore_newest(manager, abstract_state, hosts=None):
  """Restores the newest checkpoint that is not damaged.

  A damaged one is reported and the next older one is tried; once that is
  restored, the damaged ones are moved to `<workdir>/broken/`. A checkpoint is
  damaged for all processes if it is for one.

  Args:
    manager: from `create_manager`.
    abstract_state: `TrainState` of `ShapeDtypeStruct` with shardings.
    hosts: `Hosts`, all of which call this; by default this process is alone.

  Returns:
    (`TrainState`, meta), or None where there is no checkpoint at all.

  Raises:
    UserError: no checkpoint is whole, or storage does not answer, or a
      checkpoint holds another model. Nothing was moved then.
  """
  hosts = hosts or Hosts()
  steps = hosts.on_first(lambda: sorted(manager.all_steps(), reverse=True))
  damaged = {}
  for step in steps:
    restored, reason = checkpoint_reader.read_whole(
      manager.directory.parent, step, abstract_state, hosts
    )
    if reason is None:
      _put_aside_all(manager, damaged, hosts)
      return restored
    damaged[step] = reason
  if damaged:
    raise UserError(
      f"every checkpoint in {manager.directory} was broken; {steps[0]}: "
      f"{damaged[steps[0]]} (nothing was changed; mend one, or use another "
      "--workdir to start anew)"
    )
  _check_none_was_put_aside(manager.directory.parent, hosts)
  return None


def _put_aside_all(manager, damaged, hosts):
  for step, reason in damaged.items():
    print(f"checkpoint {step} is broken and put aside: {reason}")
    hosts.on_first(lambda step=step: _put_aside(manager.directory, step))
  if damaged:
    manager.reload()


def _put_aside(directory, step):
  broken = directory.parent / BROKEN_DIR
  names = (f"{step}.{i}" if i else str(step) for i in itertools.count())
  target = next(n for n in names if not (broken / n).exists())
  paths.move_folder(directory / str(step), broken / target, COMMIT_FILE)


def _check_none_was_put_aside(workdir, hosts):
  """Raises UserError if a run without checkpoints had some once."""
  broken = workdir / BROKEN_DIR
  names = hosts.on_first(
    lambda: sorted(p.name for p in broken.iterdir()) if broken.exists() else []
  )
  if names:
    raise UserError(
      f"{workdir} has no checkpoint but {broken} holds {', '.join(names)}; "
      "expected one in checkpoints/ to go on from (use another --workdir to "
      "start anew)"
    )


def restore(workdir, abstract_state, step=None):
  """Restores one checkpoint for reading, and verifies it.

  Args:
    workdir: a run's folder.
    abstract_state: see `restore_newest`.
    step: int, or "best"; the newest by default.

  Returns:
    (`TrainState`, meta), meta as `save` wrote it.

  Raises:
    UserError: there is no such checkpoint, or it is broken.
  """
  _, state, meta = _load(
    workdir, step, BEST, checkpoint_reader.read_whole, abstract_state
  )
  return state, meta


def load_params(workdir, abstract_params, step=None, best=BEST, hosts=None):
  """Restores the parameters alone, for reading.

  Damage of the other arrays, such as the optimizer's, is not looked for.

  Args:
    workdir: a run's folder.
    abstract_params: nested dict of `ShapeDtypeStruct` with shardings.
    step: int, or "best"; the newest by default.
    best: (metric, "min" or "max"), what the run was kept by.
    hosts: `Hosts`, all of which call this; by default this process is alone.

  Returns:
    (step, parameters, meta), meta as `save` wrote it.

  Raises:
    UserError: there is no such checkpoint, or it is broken.
  """
  step, state, meta = _load(
    workdir, step, best, checkpoint_reader.read_params, abstract_params, hosts
  )
  return step, state["params"], meta


def tell_changed_rows(workdir, step):
  """Prints a line if rows of metrics.jsonl up to a checkpoint were changed."""
  meta = _load_meta(checkpoint_reader.directory(workdir), step) or {}
  metric_log.tell_changes(workdir, meta.get("metrics"))


def list_steps(workdir):
  """Returns the steps of all checkpoints of a workdir, ascending."""
  with checkpoint_reader.open_reader(workdir) as reader:
    return sorted(reader.all_steps())


def _load(workdir, step, best, read, abstract, hosts=None):
  """Reads and verifies a checkpoint; by default this process is alone."""
  hosts = hosts or Hosts()
  step, steps = hosts.on_first(lambda: _find_step(workdir, step, best))
  hosts.on_first(lambda: _check_files(workdir, step))
  restored, reason = read(workdir, step, abstract, hosts)
  if reason:
    raise UserError(
      f"checkpoint {step} of {workdir} is broken: {reason} (choose another "
      f"--step of {', '.join(map(str, steps))})"
    )
  return step, *restored


def _check_files(workdir, step):
  """Raises UserError if settings or vocabulary are not those trained with."""
  meta = _load_meta(checkpoint_reader.directory(workdir), step)
  if meta:  # else the checkpoint will be found broken
    _check_config(workdir, step, meta)
    _check_vocabulary(workdir, step, meta)


def _check_config(workdir, step, meta):
  """Raises UserError if a workdir's settings are not those trained with.

  A setting that only one of the two has is of another version.
  """
  path = paths.as_path(workdir) / workdir_lib.CONFIG_FILE
  if not path.exists():
    return
  found = flatten(
    files.load_json(path, "write the settings of the run into it")
  )
  kept = flatten(meta["config"])
  both = found.keys() & kept.keys()
  workdir_lib.check_same(
    {key: found[key] for key in both},
    {key: kept[key] for key in both},
    f"checkpoint {step} of {workdir}",
  )


def _check_vocabulary(workdir, step, meta):
  """Raises UserError if a workdir's vocab.txt is not the one trained with."""
  expected = meta.get("vocab_crc32")
  if expected is None:
    return
  path = paths.as_path(workdir) / "vocab.txt"
  found = f"{zlib.crc32(path.read_bytes()):08x}" if path.is_file() else "none"
  if found != f"{expected:08x}":
    raise UserError(
      f"{path} has the checksum {found}; expected {expected:08x}, which "
      f"checkpoint {step} was trained with (copy vocab.txt of the corpus there)"
    )


def _find_step(workdir, step, best):
  """Returns (the step meant, all steps); arguments as for `load_params`."""
  steps = list_steps(workdir)
  found = {
    None: steps[-1] if steps else None,
    "best": _find_best(checkpoint_reader.directory(workdir), steps, best),
  }
  if found.get(step, step) not in steps:
    raise UserError(
      f"{workdir} has no checkpoint {'' if step is None else step}; it has: "
      f"{', '.join(map(str, steps)) or 'none'}"
    )
  return found.get(step, step), steps
