"""Checkpoints with orbax, and finding the newest one that is whole.

Each holds the train state and, beside it, the settings, the corpus'
fingerprint and a checksum per array: a flipped byte in a file restores without
an error otherwise. Saving is asynchronous; the checksums are computed on the
device at the moment of saving.
"""

import logging

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from bert_jax.errors import UserError


def create_manager(config, workdir):
  """Opens `<workdir>/checkpoints` for a run.

  Args:
    config: `config.checkpoint`.
    workdir: `epath.Path`.

  Returns:
    `ocp.CheckpointManager`; close it to wait for the last save.
  """
  return _open_manager(workdir, max_to_keep=config.keep)


def _open_manager(workdir, max_to_keep=None):
  # orbax warns of its own defaults at every save.
  logging.getLogger("absl").setLevel(logging.ERROR)
  return ocp.CheckpointManager(
    epath.Path(workdir).absolute() / "checkpoints",
    options=ocp.CheckpointManagerOptions(max_to_keep=max_to_keep, create=True),
    item_names=("state", "meta"),
  )


def save(manager, state, config, fingerprint):
  """Begins to write a checkpoint; returns before it is on disk.

  Args:
    manager: from `create_manager`.
    state: `TrainState`; may be donated right after.
    config: the run's settings.
    fingerprint: str of the corpus.
  """
  step = int(state.step)
  if step in manager.all_steps():
    return
  meta = {
    "config": config.to_dict(),
    "corpus_fingerprint": fingerprint,
    "checksums": checksums(state),
  }
  manager.save(
    step,
    args=ocp.args.Composite(
      state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
    ),
    force=True,
  )


def restore_newest(manager, abstract_state):
  """Restores the newest checkpoint that is whole.

  A broken one is reported, put aside under `<workdir>/broken/`, and the next
  older one is tried.

  Args:
    manager: from `create_manager`.
    abstract_state: `TrainState` of `ShapeDtypeStruct` with shardings.

  Returns:
    (`TrainState`, meta), or None where there is no checkpoint at all.

  Raises:
    UserError: there are checkpoints, and all of them are broken.
  """
  steps = sorted(manager.all_steps(), reverse=True)
  for step in steps:
    try:
      return restore(manager, step, abstract_state)
    except Exception as e:  # whatever a damaged file makes the readers raise
      print(f"checkpoint {step} is broken and put aside: {_one_line(e)}")
      broken = manager.directory.parent / "broken"
      broken.mkdir(parents=True, exist_ok=True)
      (manager.directory / str(step)).rename(broken / str(step))
      manager.reload()
  if steps:
    raise UserError(
      f"every checkpoint in {manager.directory} was broken; they are in "
      f"{manager.directory.parent / 'broken'} (use another --workdir to start "
      "anew)"
    )
  return None


def restore(manager, step, abstract_state):
  """Restores one checkpoint and verifies it.

  Args:
    manager: from `create_manager`.
    step: int.
    abstract_state: see `restore_newest`.

  Returns:
    (`TrainState`, meta), meta as `save` wrote it.

  Raises:
    ValueError: an array does not have its checksum.
    Exception: what orbax raises for missing or damaged files.
  """
  restored = manager.restore(
    step,
    args=ocp.args.Composite(
      state=ocp.args.StandardRestore(abstract_state),
      meta=ocp.args.JsonRestore(),
    ),
  )
  _verify(restored.state, restored.meta)
  return restored.state, restored.meta


def load_params(workdir, abstract_params, step=None):
  """Restores the parameters alone, for reading.

  Args:
    workdir: a run's folder.
    abstract_params: nested dict of `ShapeDtypeStruct` with shardings.
    step: int; the newest by default.

  Returns:
    (step, parameters, meta), meta as `save` wrote it.

  Raises:
    UserError: there is no such checkpoint, or it is broken.
  """
  manager = _open_manager(workdir)
  steps = sorted(manager.all_steps())
  step = (steps[-1] if steps else None) if step is None else step
  if step not in steps:
    raise UserError(
      f"{workdir} has no checkpoint {'' if step is None else step}; it has: "
      f"{', '.join(map(str, steps)) or 'none'}"
    )
  item = {"params": abstract_params}
  restore_args = ocp.checkpoint_utils.construct_restore_args(item)
  try:
    restored = manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeRestore(
          item, restore_args=restore_args, partial_restore=True
        ),
        meta=ocp.args.JsonRestore(),
      ),
    )
    _verify(restored.state, restored.meta)
  except Exception as e:  # whatever a damaged file makes the readers raise
    raise UserError(
      f"checkpoint {step} of {workdir} is broken: {_one_line(e)} (choose "
      f"another --step of {', '.join(map(str, steps))})"
    ) from e
  manager.close()
  return step, restored.state["params"], restored.meta


def _verify(state, meta):
  """Raises ValueError if an array does not have the checksum it was saved with.

  Args:
    state: a whole `TrainState`, or {"params": ...} of one.
    meta: as `save` wrote it.
  """
  found, expected = checksums(state), meta["checksums"]
  wrong = [name for name in found if found[name] != expected.get(name)]
  if wrong:
    raise ValueError(
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
