"""Reads one checkpoint: structure first, then contents, then checksums.

An error of the storage is retried; only damage of the checkpoint itself is a
reason to go back to an older one.
"""

import functools
import logging
import time

import jax
import orbax.checkpoint as ocp

from bert_jax.errors import StorageError, UserError
from bert_jax.storage import checksums, damage, files, paths

# Pauses between attempts to read from a storage that does not answer.
RETRY_SECONDS = (1, 4, 16)
# How an attempt to read ends, besides DAMAGED and UNREADABLE of damage.py.
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

  By default orbax makes all processes wait for one another. Where a broken file
  stops one of them, the others would wait for ever.
  """
  me = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"host{me}"
  )
  return open_manager(workdir, read_only=True, multiprocessing_options=alone)


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
    # Every host has read it, so every host takes part in the sums.
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
    StorageError: storage does not answer.
    UserError: `read` raised it.
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
  raise StorageError(
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
    return None, (damage.classify(e), one_line(e))


def _read_state(workdir, step, abstract_state):
  meta = _read_meta(workdir, step, abstract_state)
  found = read_items(
    workdir, step, state=ocp.args.StandardRestore(abstract_state)
  )
  return found.state, meta


def _read_params(workdir, step, abstract_params):
  item = {"params": abstract_params}
  meta = _read_meta(workdir, step, item)
  args = ocp.args.PyTreeRestore(
    item,
    restore_args=ocp.checkpoint_utils.construct_restore_args(item),
    partial_restore=True,
  )
  return read_items(workdir, step, state=args).state, meta


def _read_meta(workdir, step, abstract_state):
  """Reads what was saved beside a state; compares the state's structure.

  Raises:
    UserError: the checkpoint holds other arrays than `abstract_state`.
    ValueError: its own checksum is wrong.
  """
  meta = dict(read_items(workdir, step, meta=ocp.args.JsonRestore()).meta)
  crc = meta.pop("crc32", None)
  if crc is not None and crc != files.crc_of_json(meta):
    raise ValueError("meta/metadata does not have its checksum")
  if meta.get("step", step) != step:
    raise ValueError(f"it is that of step {meta['step']}")
  # Without this file orbax would guess the structure.
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


def read_items(workdir, step, **items):
  """Reads items of a checkpoint, unverified; orbax says which there are."""
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
  else:  # written by a version whose checksums ignored the order of words
    found, expected = checksums.plain_sums(state), meta["checksums"]
  wrong = [name for name in found if found[name] != expected.get(name)]
  if not wrong:
    return None
  return (
    f"{len(wrong)} of {len(found)} arrays do not have their checksum, the "
    f"first is {wrong[0]}"
  )


def one_line(error):
  """Returns the kind and the text of an error, at most 200 letters of it."""
  text = " ".join(str(error).split())[:200]
  return f"{type(error).__name__}: {text}"
