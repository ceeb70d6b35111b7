"""Tries a workdir: does there, with tiny files, what a run does."""

import collections
import contextlib
import time
import uuid

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from bert_jax.config import default_config
from bert_jax.distributed.hosts import Hosts
from bert_jax.errors import StorageError, UserError
from bert_jax.storage import checkpoint_reader, checkpoints, damage, paths
from bert_jax.storage.access import check_bucket, one_line_errors

_TinyState = collections.namedtuple("_TinyState", ["step", "params"])


def check_round_trip(workdir, hosts=None):
  """Writes a tiny checkpoint into a workdir without one, and reads it back.

  orbax can't read what it wrote to folders with some letters in their names;
  a run there would lose all of its checkpoints.

  Args:
    workdir: `epath.Path` of the run.
    hosts: `Hosts`, all of which call this; by default this process is alone.

  Raises:
    UserError: what was written can't be read.
  """
  hosts = hosts or Hosts()
  if not hosts.on_first(lambda: _has_no_checkpoint(workdir)):
    return
  trial = paths.as_path(workdir) / "trial"
  hosts.on_first(lambda: paths.remove_folder(trial))
  error = None
  try:
    _try_round_trip(trial)
  except Exception as e:  # orbax and storage clients raise what they like
    error = checkpoint_reader.one_line(e)
  errors = [error for error in hosts.gather(error) if error]
  hosts.on_first(lambda: paths.remove_folder(trial))
  if errors:
    kind = StorageError if damage.is_transient(errors[0]) else UserError
    raise kind(
      f"{workdir} can't hold checkpoints, one written there for a trial can't "
      f"be read: {errors[0]}; expected a --workdir on a disk with room and "
      "without any of []*?\\ in its path"
    )


def _has_no_checkpoint(workdir):
  found = checkpoint_reader.directory(workdir)
  return not (found.exists() and any(found.iterdir()))


def _try_round_trip(trial):
  state = {"x": np.arange(1000, dtype=np.float32)}
  with checkpoint_reader.open_manager(trial, create=True) as manager:
    manager.save(
      0,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave({})
      ),
    )
  found = checkpoint_reader.read_items(
    trial, 0, state=ocp.args.StandardRestore(state)
  ).state
  if not np.array_equal(found["x"], state["x"]):
    raise ValueError("other numbers came back")


def check_storage(workdir):
  """Does in a new folder of a workdir what a run does there; prints each part.

  Args:
    workdir: `epath.Path`; nothing is left in it.

  Raises:
    UserError: a part does not work; says what is missing.
  """
  check_bucket(workdir)
  folder = workdir / f"preflight-{uuid.uuid4().hex[:8]}"
  with one_line_errors(workdir):
    try:
      for name, part in (
        ("a file written, read, replaced and deleted", _try_file),
        ("a folder listed", _try_listing),
        ("two checkpoints saved, the older one deleted", _try_to_save),
        ("the newest checkpoint found and restored", _try_to_restore),
      ):
        started = time.monotonic()
        part(folder)
        print(f"preflight: {name} in {time.monotonic() - started:.1f} s")
    finally:
      paths.remove_folder(folder)


def _try_file(folder):
  path = folder / "file"
  for content in ("first", "second"):
    paths.write_file(path, content)
    _expect("the file's content", path.read_text(), content)
  path.unlink()
  _expect("whether a deleted file is there", path.exists(), False)


def _try_listing(folder):
  for name in ("a", "b"):
    paths.write_file(folder / "listed" / name, name)
  names = sorted(path.name for path in (folder / "listed").iterdir())
  _expect("the listing", names, ["a", "b"])


def _try_to_save(folder):
  config = default_config()
  config.checkpoint.keep = 1
  manager = checkpoints.create_manager(config.checkpoint, folder)
  with contextlib.closing(manager):
    for step in (1, 2):
      checkpoints.save(manager, _tiny_state(step), config, "preflight")
    manager.wait_until_finished()
  names = [path.name for path in (folder / "checkpoints").iterdir()]
  _expect("the checkpoints kept", names, ["2"])


def _try_to_restore(folder):
  manager = checkpoints.create_manager(default_config().checkpoint, folder)
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
    _tiny_state(0),
  )
  with contextlib.closing(manager):
    state, _ = checkpoints.restore_newest(manager, abstract)
  found = [np.asarray(state.step).tolist(), np.asarray(state.params).tolist()]
  tiny = _tiny_state(2)
  _expect("the checkpoint", found, [2, np.asarray(tiny.params).tolist()])


def _tiny_state(step):
  params = jnp.arange(1000, dtype=jnp.float32) + step
  return _TinyState(step=jnp.int32(step), params=params)


def _expect(what, found, expected):
  if found != expected:
    raise UserError(f"{what} is {found!r:.80}; expected {expected!r:.80}")
