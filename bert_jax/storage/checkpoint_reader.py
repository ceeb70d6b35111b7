"""Reads one checkpoint: structure first, then contents, then checksums.

An error of the storage is waited out; only damage of the checkpoint itself is
a reason to go back to an older one.
"""

import functools
import logging
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from bert_jax.distributed.hosts import Hosts
from bert_jax.errors import UserError
from bert_jax.storage import checksums, damage, paths

# Pauses between attempts to read from a storage that does not answer.
RETRY_SECONDS = (1, 4, 16)
# What an attempt comes to, beside the two kinds of damage.py.
_NO_PROBLEM, _MISTAKE = "none", "mistake"


def directory(workdir):
  """Returns the `epath.Path` of the checkpoints of a run."""
  return paths.absolute(workdir) / "checkpoints"


def open_manager(workdir, **options):
  """Opens the checkpoints of a run; `options` are orbax's."""
  # orbax warns of its own defaults at every save.
  logging.getLogger("absl").setLevel(logging.ERROR)
  return ocp.CheckpointManager(
    directory(workdir),
    options=ocp.CheckpointManagerOptions(**options),
    item_names=("state", "meta"),
  )


def open_reader(workdir):
  """Opens checkpoints for this process alone.

  Orbax' own waiting of all processes for one another would never end where a
  broken file stops one of them.
  """
  me = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"host{me}"
  )
  return open_manager(workdir, read_only=True, multiprocessing_options=alone)


def check_round_trip(workdir, hosts=None):
  """Writes a tiny checkpoint into a workdir without one, and reads it back.

  Some names of folders break what orbax does with them, and then a run would
  lose all of its checkpoints.

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
    error = _one_line(e)
  errors = [error for error in hosts.gather(error) if error]
  hosts.on_first(lambda: paths.remove_folder(trial))
  if errors:
    raise UserError(
      f"{workdir} can't hold checkpoints, one written there for a trial can't "
      f"be read: {errors[0]}; expected a --workdir on a disk with room and "
      "without any of []*?\\ in its path"
    )


def _has_no_checkpoint(workdir):
  found = directory(workdir)
  return not (found.exists() and any(found.iterdir()))


def _try_round_trip(trial):
  state = {"x": np.arange(1000, dtype=np.float32)}
  with open_manager(trial, create=True) as manager:
    manager.save(
      0,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave({})
      ),
    )
  found = _read(trial, 0, state=ocp.args.StandardRestore(state)).state
  if not np.array_equal(found["x"], state["x"]):
    raise ValueError("other numbers came back")


def read_whole(workdir, step, abstract_state, hosts):
  """Reads a checkpoint on all hosts and verifies it.

  Args:
    workdir: a run's folder.
    step: int.
    abstract_state: `TrainState` of `ShapeDtypeStruct` with shardings.
    hosts: `Hosts`, all of which call this.

  Returns:
    ((`TrainState`, meta), None), or (None, why it is damaged).

  Raises:
    UserError: it can't be read, or holds other arrays.
  """
  read = functools.partial(_read_state, workdir, step, abstract_state)
  return _read_and_verify(workdir, step, read, hosts)


def read_params(workdir, step, abstract_params, hosts):
  """Reads the parameters of a checkpoint; otherwise as `read_whole`.

  Returns:
    (({"params": parameters}, meta), None), or (None, why they are damaged).
  """
  read = functools.partial(_read_params, workdir, step, abstract_params)
  return _read_and_verify(workdir, step, read, hosts)


def _read_and_verify(workdir, step, read, hosts):
  restored, reason = _read_with_retries(workdir, step, read, hosts)
  if reason is None:
    # All have read it, so all take part in adding up.
    reason = find_wrong_checksum(*restored)
  return (None, reason) if reason else (restored, None)


def _read_with_retries(workdir, step, read, hosts):
  """Reads a checkpoint, again and again while storage does not answer.

  Args:
    workdir: of the run.
    step: int.
    read: function without arguments.
    hosts: `Hosts`, all of which call this.

  Returns:
    (what `read` returned, None), or (None, why the checkpoint is damaged).

  Raises:
    UserError: storage does not answer, or `read` raised it.
  """
  for seconds in (*RETRY_SECONDS, None):
    result, problem = _attempt(read)
    problems = hosts.gather(problem)
    by_kind = {}
    for index, (kind, text) in enumerate(problems):
      where = "" if hosts.is_alone else f"host {index}: "
      by_kind.setdefault(kind, f"{where}{text}")
    by_kind.pop(_NO_PROBLEM, None)
    if _MISTAKE in by_kind:
      raise UserError(by_kind[_MISTAKE])
    if damage.DAMAGED in by_kind:
      return None, by_kind[damage.DAMAGED]
    if not by_kind:
      return result, None
    if seconds is not None:
      print(
        f"checkpoint {step} can't be read: {by_kind[damage.UNREADABLE]}; next "
        f"attempt in {seconds} s",
        flush=True,
      )
      time.sleep(seconds)
  raise UserError(
    f"checkpoint {step} of {workdir} can't be read: "
    f"{by_kind[damage.UNREADABLE]} (nothing was changed; start again once the "
    "storage answers)"
  )


def _attempt(read):
  """Returns what `read` returned, or None, and (kind, text) of its error."""
  try:
    return read(), (_NO_PROBLEM, "")
  except UserError as e:
    return None, (_MISTAKE, str(e))
  except Exception as e:  # orbax and storage clients raise what they like
    return None, (damage.classify(e), _one_line(e))


def _read_state(workdir, step, abstract_state):
  meta = _read_meta(workdir, step, abstract_state)
  found = _read(workdir, step, state=ocp.args.StandardRestore(abstract_state))
  return found.state, meta


def _read_params(workdir, step, abstract_params):
  item = {"params": abstract_params}
  meta = _read_meta(workdir, step, item)
  args = ocp.args.PyTreeRestore(
    item,
    restore_args=ocp.checkpoint_utils.construct_restore_args(item),
    partial_restore=True,
  )
  return _read(workdir, step, state=args).state, meta


def _read_meta(workdir, step, abstract_state):
  """Reads what was saved beside a state; compares the state's structure.

  Raises:
    UserError: the checkpoint holds other arrays than `abstract_state`.
    ValueError: its own checksum is wrong.
  """
  meta = dict(_read(workdir, step, meta=ocp.args.JsonRestore()).meta)
  crc = meta.pop("crc32", None)
  if crc is not None and crc != checksums.crc_of_json(meta):
    raise ValueError("meta/metadata does not have its checksum")
  # A file that orbax replaces by a guess where it is missing.
  path = directory(workdir) / str(step) / "state" / "_METADATA"
  if not path.exists():
    raise FileNotFoundError(f"{path} is missing")
  problem = _compare_structure(meta, abstract_state)
  if problem:
    raise UserError(
      f"checkpoint {step} of {workdir} is of another model: {problem} (use the "
      "settings and the version that wrote it, or another --workdir)"
    )
  return meta


def _compare_structure(meta, abstract_state):
  """Returns the first difference between saved and expected arrays, or None."""
  expected = checksums.named_arrays(abstract_state)
  saved = meta.get("arrays") or dict.fromkeys(meta["checksums"])
  for name in expected:
    if name not in saved:
      return f"it has no array {name}"
    seen = saved[name] and [tuple(saved[name]["shape"]), saved[name]["dtype"]]
    wanted = [tuple(expected[name].shape), str(expected[name].dtype)]
    if seen not in (None, wanted):
      return f"{name} is {_spell(*seen)}; expected {_spell(*wanted)}"
  is_whole = any(not name.startswith("params/") for name in expected)
  more = saved.keys() - expected.keys() if is_whole else ()
  return f"it has an array {min(more)} too" if more else None


def _spell(shape, dtype):
  return f"{dtype} {list(shape)}"


def _read(workdir, step, **items):
  with open_reader(workdir) as reader:
    return reader.restore(step, args=ocp.args.Composite(**items))


def find_wrong_checksum(state, meta):
  """Looks for an array without the checksum it was saved with.

  Args:
    state: a whole `TrainState`, or {"params": ...} of one.
    meta: as `save` wrote it.

  Returns:
    str that says what is wrong, or None.
  """
  if "arrays" in meta:
    found = checksums.checksums(state)
    expected = {k: v["checksum"] for k, v in meta["arrays"].items()}
  else:  # written before checksums saw the order of words
    found, expected = checksums.plain_sums(state), meta["checksums"]
  wrong = [name for name in found if found[name] != expected.get(name)]
  if not wrong:
    return None
  return (
    f"{len(wrong)} of {len(found)} arrays do not have their checksum, the "
    f"first is {wrong[0]}"
  )


def _one_line(error):
  text = " ".join(str(error).split())[:200]
  return f"{type(error).__name__}: {text}"
