"""Checkpoints with orbax, and finding the newest one that is whole.

Kept are the latest few and the one with the best held-out figure. Each holds
the train state and, beside it, the settings, the corpus' fingerprint and a
checksum per array: a flipped byte in a file restores without an error
otherwise. Saving is asynchronous; the checksums are computed on the device at
the moment of saving.
"""

import dataclasses
import json
import logging
import math

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from bert_jax.distributed.hosts import Hosts
from bert_jax.errors import UserError
from bert_jax.storage import paths

# What orbax writes last; in a bucket nothing else says that all is there.
COMMIT_FILE = "commit_success.txt"
# A metric of the held-out rows, and which of its ends is the good one.
BEST = ("loss", "min")


def create_manager(config, workdir, best=BEST):
  """Opens `<workdir>/checkpoints` for a run; all its processes do.

  Args:
    config: `config.checkpoint`.
    workdir: `epath.Path`.
    best: (metric, "min" or "max"), by which the best checkpoint is kept.

  Returns:
    `ocp.CheckpointManager`; close it to wait for the last save.
  """
  directory = _directory(workdir)
  return _open_manager(
    workdir,
    preservation_policy=_LatestAndBest(directory, config.keep, best),
    create=True,
  )


def _directory(workdir):
  return paths.absolute(workdir) / "checkpoints"


def _open_manager(workdir, **options):
  # orbax warns of its own defaults at every save.
  logging.getLogger("absl").setLevel(logging.ERROR)
  return ocp.CheckpointManager(
    _directory(workdir),
    options=ocp.CheckpointManagerOptions(**options),
    item_names=("state", "meta"),
  )


@dataclasses.dataclass(frozen=True)
class _LatestAndBest(preservation_policy.PreservationPolicy):
  """Which checkpoints orbax keeps.

  Its own policy for the best reads metrics that it wrote when it opens the
  folder, and can't open it where one of these files is broken.
  """

  directory: epath.Path
  keep: int
  best: tuple

  def should_preserve(self, checkpoints, *, context):
    """Returns whether to keep each of `checkpoints`, which are in order."""
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept = {*steps[-self.keep :], _find_best(self.directory, steps, self.best)}
    return [step in kept for step in steps]


def _find_best(directory, steps, best):
  """Returns the step with the best held-out figure, or None."""
  name, mode = best
  figures = {step: _load_evaluated(directory, step).get(name) for step in steps}
  figures = {step: x for step, x in figures.items() if x is not None}
  choose = {"min": min, "max": max}[mode]
  return choose(figures, key=figures.get) if figures else None


def _load_evaluated(directory, step):
  """Returns the held-out figures saved with a step; {} if there are none."""
  try:
    meta = json.loads((directory / str(step) / "meta/metadata").read_text())
    return dict(meta["evaluated"])
  except (OSError, ValueError, KeyError, TypeError):
    return {}  # still being written, or broken


def _open_reader(workdir):
  """Opens checkpoints for this process alone.

  Orbax' own waiting of all processes for one another would never end where a
  broken file stops one of them.
  """
  me = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"host{me}"
  )
  return _open_manager(workdir, read_only=True, multiprocessing_options=alone)


def save(manager, state, config, fingerprint, evaluated=None):
  """Begins to write a checkpoint; returns before it is on disk.

  Args:
    manager: from `create_manager`.
    state: `TrainState`; may be donated right after.
    config: the run's settings.
    fingerprint: str of the corpus.
    evaluated: held-out row of this very step, or None; the manager's metric
      in it says whether this is the best checkpoint.
  """
  step = int(state.step)
  if step in manager.all_steps():
    return
  meta = {
    "config": config.to_dict(),
    "corpus_fingerprint": fingerprint,
    "checksums": checksums(state),
    "evaluated": _finite_numbers(evaluated or {}),
  }
  manager.save(
    step,
    args=ocp.args.Composite(
      state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
    ),
    force=True,
  )


def _finite_numbers(row):
  return {
    key: value
    for key, value in row.items()
    if isinstance(value, float) and math.isfinite(value)
  }


def restore_newest(manager, abstract_state, hosts=None):
  """Restores the newest checkpoint that is whole.

  A broken one is reported, put aside under `<workdir>/broken/`, and the next
  older one is tried. It is broken for all processes if it is for one.

  Args:
    manager: from `create_manager`.
    abstract_state: `TrainState` of `ShapeDtypeStruct` with shardings.
    hosts: `Hosts`, all of which call this; by default this process is alone.

  Returns:
    (`TrainState`, meta), or None where there is no checkpoint at all.

  Raises:
    UserError: there are checkpoints, and all of them are broken.
  """
  hosts = hosts or Hosts()
  steps = hosts.on_first(lambda: sorted(manager.all_steps(), reverse=True))
  for step in steps:
    restored, error = _try_to_restore(manager, step, abstract_state, hosts)
    if error is None:
      return restored
    print(f"checkpoint {step} is broken and put aside: {error}")
    hosts.on_first(lambda step=step: _put_aside(manager.directory, step))
    manager.reload()
  if steps:
    raise UserError(
      f"every checkpoint in {manager.directory} was broken; they are in "
      f"{manager.directory.parent / 'broken'} (use another --workdir to start "
      "anew)"
    )
  return None


def _put_aside(directory, step):
  target = directory.parent / "broken" / str(step)
  paths.move_folder(directory / str(step), target, COMMIT_FILE)


def _try_to_restore(manager, step, abstract_state, hosts):
  """Returns ((`TrainState`, meta), None), or (None, what is wrong)."""
  restored, error = None, None
  try:
    restored = _read(
      manager.directory.parent,
      step,
      state=ocp.args.StandardRestore(abstract_state),
      meta=ocp.args.JsonRestore(),
    )
  except Exception as e:  # whatever a damaged file makes the readers raise
    error = _one_line(e)
  for index, other in enumerate(hosts.gather(error)):
    if other is not None:
      where = "" if hosts.is_alone else f"host {index}: "
      return None, where + other
  # All have read it, so all take part in adding up.
  wrong = find_wrong_checksum(restored.state, restored.meta)
  return (None, wrong) if wrong else ((restored.state, restored.meta), None)


def _read(workdir, step, **items):
  with _open_reader(workdir) as reader:
    return reader.restore(step, args=ocp.args.Composite(**items))


def restore(manager, step, abstract_state):
  """Restores one checkpoint and verifies it.

  Args:
    manager: from `create_manager`.
    step: int.
    abstract_state: see `restore_newest`.

  Returns:
    (`TrainState`, meta), meta as `save` wrote it.

  Raises:
    ValueError: it is broken.
  """
  restored, error = _try_to_restore(manager, step, abstract_state, Hosts())
  if error:
    raise ValueError(f"checkpoint {step} is broken: {error}")
  return restored


def load_params(workdir, abstract_params, step=None, best=BEST):
  """Restores the parameters alone, for reading.

  Args:
    workdir: a run's folder.
    abstract_params: nested dict of `ShapeDtypeStruct` with shardings.
    step: int, or "best"; the newest by default.
    best: (metric, "min" or "max"), what the run was kept by.

  Returns:
    (step, parameters, meta), meta as `save` wrote it.

  Raises:
    UserError: there is no such checkpoint, or it is broken.
  """
  step, steps = _find_step(workdir, step, best)
  item = {"params": abstract_params}
  try:
    restored = _read(
      workdir,
      step,
      state=ocp.args.PyTreeRestore(
        item,
        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True,
      ),
      meta=ocp.args.JsonRestore(),
    )
    wrong = find_wrong_checksum(restored.state, restored.meta)
  except Exception as e:  # whatever a damaged file makes the readers raise
    wrong = _one_line(e)
  if wrong:
    raise UserError(
      f"checkpoint {step} of {workdir} is broken: {wrong} (choose another "
      f"--step of {', '.join(map(str, steps))})"
    )
  return step, restored.state["params"], restored.meta


def _find_step(workdir, step, best):
  """Returns (the step meant, all steps); arguments as for `load_params`."""
  with _open_reader(workdir) as reader:
    steps = sorted(reader.all_steps())
  found = {
    None: steps[-1] if steps else None,
    "best": _find_best(_directory(workdir), steps, best),
  }
  if found.get(step, step) not in steps:
    raise UserError(
      f"{workdir} has no checkpoint {'' if step is None else step}; it has: "
      f"{', '.join(map(str, steps)) or 'none'}"
    )
  return found.get(step, step), steps


def find_wrong_checksum(state, meta):
  """Looks for an array without the checksum it was saved with.

  Args:
    state: a whole `TrainState`, or {"params": ...} of one.
    meta: as `save` wrote it.

  Returns:
    str that says what is wrong, or None.
  """
  found, expected = checksums(state), meta["checksums"]
  wrong = [name for name in found if found[name] != expected.get(name)]
  if not wrong:
    return None
  return (
    f"{len(wrong)} of {len(found)} arrays do not have their checksum, the "
    f"first is {wrong[0]}"
  )


def _one_line(error):
  return " ".join(str(error).split())[:200]


def checksums(state):
  """Adds up the bits of every array.

  Args:
    state: pytree of 32-bit arrays, on any mesh.

  Returns:
    dict from path to the sum of the array's words, modulo 2**32.
  """
  leaves = jax.tree.leaves_with_path(state)
  names = [
    jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves
  ]
  sums = jax.device_get(_sum_bits([leaf for _, leaf in leaves]))
  return {name: int(s) for name, s in zip(names, sums, strict=True)}


@jax.jit
def _sum_bits(leaves):
  def sum_bits(leaf):
    return jnp.sum(jax.lax.bitcast_convert_type(leaf, jnp.uint32))

  return [sum_bits(leaf) for leaf in leaves]
