"""Checkpoints: whole ones come back to the bit, broken ones are passed over."""

import gc
import json
import pathlib
import shutil
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from bert_jax.config import default_config
from bert_jax.errors import UserError
from bert_jax.storage import (
  checkpoint_reader,
  checkpoints,
  checksums,
  trial,
)
from bert_jax.training.train_state import TrainState

# orbax leaves coroutines and event loops behind when a restore fails.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning"
)


def _state(step):
  rng = np.random.default_rng(step)
  weights = rng.normal(size=(64, 33)).astype(np.float32)
  return TrainState(
    step=jnp.int32(step),
    params={"dense": {"kernel": jnp.asarray(weights)}},
    opt_state=(jnp.asarray(weights**2), jnp.int32(step)),
    skipped_steps=jnp.int32(0),
  )


def _abstract():
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), _state(0)
  )


@pytest.fixture(name="manager")
def _manager(tmp_path):
  config = default_config()
  manager = checkpoints.create_manager(config.checkpoint, tmp_path)
  for step in (10, 20, 30):
    checkpoints.save(manager, _state(step), config, "corpus")
  manager.wait_until_finished()
  yield manager
  manager.close()
  gc.collect()  # so that the warnings above come within this module


def _damage(manager, step, how):
  """Damages every file of a checkpoint that holds numbers."""
  files = pathlib.Path(manager.directory / str(step) / "state").rglob("d/*")
  for path in list(files):
    how(path)


def _flip_a_byte(path):
  content = bytearray(epath.Path(path).read_bytes())
  content[len(content) // 2] ^= 0x10
  epath.Path(path).write_bytes(bytes(content))


def _truncate(path):
  content = epath.Path(path).read_bytes()
  epath.Path(path).write_bytes(content[: len(content) // 2])


def test_the_newest_checkpoint_comes_back_to_the_bit(manager):
  state, meta = checkpoints.restore_newest(manager, _abstract())
  jax.tree.map(np.testing.assert_array_equal, state, _state(30))
  assert meta["corpus_fingerprint"] == "corpus"
  assert meta["config"] == default_config().to_dict()


@pytest.mark.parametrize(
  "damage", [_flip_a_byte, _truncate, lambda path: path.unlink()]
)
def test_a_damaged_checkpoint_is_reported_and_the_older_one_used(
  manager, capsys, damage
):
  _damage(manager, 30, damage)
  state, _ = checkpoints.restore_newest(manager, _abstract())
  jax.tree.map(np.testing.assert_array_equal, state, _state(20))
  assert "checkpoint 30 is broken and put aside" in capsys.readouterr().out
  assert (manager.directory.parent / "broken" / "30").exists()
  # The step can be saved again.
  config = default_config()
  checkpoints.save(manager, _state(30), config, "corpus")
  manager.wait_until_finished()
  state, _ = checkpoints.restore_newest(manager, _abstract())
  jax.tree.map(np.testing.assert_array_equal, state, _state(30))


def _list_all(tmp_path):
  """Returns every file under a workdir."""
  return sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))


def test_nothing_but_broken_checkpoints_is_an_error_at_every_start(
  manager, tmp_path
):
  for step in (10, 20, 30):
    _damage(manager, step, _flip_a_byte)
  before = _list_all(tmp_path)
  for _ in range(2):
    with pytest.raises(UserError, match=r"every checkpoint .* was broken"):
      checkpoints.restore_newest(manager, _abstract())
  assert _list_all(tmp_path) == before


def test_no_run_begins_anew_while_there_are_broken_checkpoints(tmp_path):
  (tmp_path / "broken" / "30").mkdir(parents=True)
  config = default_config().checkpoint
  with (
    checkpoints.create_manager(config, tmp_path) as manager,
    pytest.raises(UserError, match=r"no checkpoint but .*broken holds 30"),
  ):
    checkpoints.restore_newest(manager, _abstract())


@pytest.mark.parametrize(
  "error",
  [
    OSError("503 Service Unavailable"),
    RuntimeError("503 Service Unavailable"),
    ValueError("UNAVAILABLE: Error opening zarr driver: HTTP 503"),
    PermissionError(13, "Permission denied"),
    MemoryError(),
  ],
)
def test_storage_that_does_not_answer_is_no_damage(
  manager, tmp_path, monkeypatch, error
):
  def fail(*args, **kwargs):
    raise error

  monkeypatch.setattr(checkpoint_reader, "RETRY_SECONDS", (0, 0))
  monkeypatch.setattr(checkpoint_reader, "read_items", fail)
  before = _list_all(tmp_path)
  with pytest.raises(UserError, match=r"checkpoint 30 .* can't be read"):
    checkpoints.restore_newest(manager, _abstract())
  with pytest.raises(UserError, match=r"checkpoint 30 .* can't be read"):
    checkpoints.load_params(tmp_path, _abstract().params)
  assert _list_all(tmp_path) == before


def test_storage_that_answers_again_is_waited_for(manager, monkeypatch):
  read, failures = checkpoint_reader.read_items, iter(range(2))

  def fail_twice(*args, **kwargs):
    if next(failures, None) is not None:
      raise OSError("503 Service Unavailable")
    return read(*args, **kwargs)

  monkeypatch.setattr(checkpoint_reader, "RETRY_SECONDS", (0, 0))
  monkeypatch.setattr(checkpoint_reader, "read_items", fail_twice)
  state, _ = checkpoints.restore_newest(manager, _abstract())
  assert state.step == 30


@pytest.mark.parametrize(
  ("change", "named"),
  [
    (
      lambda state: state.replace(params={"dense": {"bias": jnp.zeros(3)}}),
      "no array params/dense/bias",
    ),
    (
      lambda state: state.replace(
        params={"dense": {"kernel": jnp.zeros((64, 34))}}
      ),
      r"params/dense/kernel is float32 \[64, 33\]; expected float32 \[64, 34\]",
    ),
    (
      lambda state: state.replace(opt_state=state.opt_state[:1]),
      "an array opt_state/1 too",
    ),
  ],
)
def test_another_structure_is_a_message_and_no_damage(
  manager, tmp_path, change, named
):
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
    change(_state(0)),
  )
  before = _list_all(tmp_path)
  with pytest.raises(UserError, match=named):
    checkpoints.restore_newest(manager, abstract)
  assert _list_all(tmp_path) == before


def test_parameters_alone_can_be_read_at_any_kept_step(manager, tmp_path):
  step, params, _ = checkpoints.load_params(tmp_path, _abstract().params, 20)
  assert step == 20
  jax.tree.map(np.testing.assert_array_equal, params, _state(20).params)


def test_a_step_that_was_not_kept_lists_those_that_were(manager, tmp_path):
  with pytest.raises(UserError, match="no checkpoint 25; it has: 10, 20, 30"):
    checkpoints.load_params(tmp_path, _abstract().params, 25)


def test_a_broken_checkpoint_is_not_exported(manager, tmp_path):
  _damage(manager, 30, _truncate)
  with pytest.raises(UserError, match=r"checkpoint 30 .* is broken"):
    checkpoints.load_params(tmp_path, _abstract().params)


def test_only_the_latest_are_kept(manager):
  checkpoints.save(manager, _state(40), default_config(), "corpus")
  manager.wait_until_finished()
  assert sorted(manager.all_steps()) == [20, 30, 40]


@pytest.mark.parametrize(
  ("best", "step"), [(("loss", "min"), 20), (("accuracy", "max"), 10)]
)
def test_the_best_is_kept_beside_the_latest_also_after_a_restart(
  tmp_path, best, step
):
  config = default_config()
  config.checkpoint.keep = 2
  figures = {
    10: {"loss": 3.0, "accuracy": 0.9},
    20: {"loss": 1.0, "accuracy": 0.5},
    30: {"loss": float("nan"), "accuracy": float("nan")},
    40: None,
    50: {"loss": 2.0, "accuracy": 0.7},
    60: None,
  }
  for number, evaluated in figures.items():
    with checkpoints.create_manager(
      config.checkpoint, tmp_path, best
    ) as manager:
      checkpoints.save(manager, _state(number), config, "corpus", evaluated)
  kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
  assert kept == {step, 50, 60}
  found, params, _ = checkpoints.load_params(
    tmp_path, _abstract().params, "best", best
  )
  assert found == step
  jax.tree.map(np.testing.assert_array_equal, params, _state(step).params)


@pytest.mark.parametrize("content", ["", "{", None])
def test_a_damaged_list_of_figures_stops_nothing(manager, tmp_path, content):
  """The step counts as never measured, and as broken."""
  path = tmp_path / "checkpoints" / "30" / "meta" / "metadata"
  if content is None:
    path.unlink()
  else:
    path.write_text(content)
  with pytest.raises(UserError, match="no checkpoint best; it has: 10, 20, 30"):
    checkpoints.load_params(tmp_path, _abstract().params, "best")
  config = default_config().checkpoint
  with checkpoints.create_manager(config, tmp_path) as again:
    state, _ = checkpoints.restore_newest(again, _abstract())
  assert state.step == 20


def test_a_damaged_figure_beside_the_state_is_seen(manager, tmp_path):
  path = tmp_path / "checkpoints" / "30" / "meta" / "metadata"
  text = path.read_text()
  path.write_text(text.replace('"hidden_size": 768', '"hidden_size": 769'))
  assert path.read_text() != text
  state, _ = checkpoints.restore_newest(manager, _abstract())
  assert state.step == 20


def test_a_checkpoint_in_the_place_of_another_is_seen(manager, tmp_path):
  """Each is whole in itself; they only have changed places."""
  folder = tmp_path / "checkpoints"
  (folder / "20").rename(folder / "aside")
  (folder / "30").rename(folder / "20")
  (folder / "aside").rename(folder / "30")
  for step in (20, 30):
    with pytest.raises(UserError, match=f"it is that of step {50 - step}"):
      checkpoints.load_params(tmp_path, _abstract().params, step)
  state, _ = checkpoints.restore_newest(manager, _abstract())
  assert state.step == 10


def test_a_model_is_not_read_with_another_vocabulary(tmp_path):
  config = default_config()
  (tmp_path / "vocab.txt").write_text("[PAD]\nriver\n")
  crc = zlib.crc32(b"[PAD]\nriver\n")
  with checkpoints.create_manager(config.checkpoint, tmp_path) as manager:
    checkpoints.save(manager, _state(10), config, "corpus", None, "phase1", crc)
  assert checkpoints.load_params(tmp_path, _abstract().params)[0] == 10
  for content in ("[PAD]\nrivez\n", "[PAD]\n", None):
    (tmp_path / "vocab.txt").unlink()
    if content:
      (tmp_path / "vocab.txt").write_text(content)
    with pytest.raises(UserError, match=rf"vocab.txt .* expected {crc:08x}"):
      checkpoints.load_params(tmp_path, _abstract().params)


def test_checkpoints_of_the_plain_sum_are_still_verified(manager, tmp_path):
  """As versions before the one that hashes have written them."""
  for step in (20, 30):
    path = tmp_path / "checkpoints" / str(step) / "meta" / "metadata"
    meta = json.loads(path.read_text())
    for new in ("arrays", "crc32", "phase"):
      del meta[new]
    meta["evaluated"] = {}
    meta["checksums"] = checksums.plain_sums(_state(step))
    path.write_text(json.dumps(meta))
  state, _ = checkpoints.restore_newest(manager, _abstract())
  jax.tree.map(np.testing.assert_array_equal, state, _state(30))
  _damage(manager, 30, _flip_a_byte)
  state, _ = checkpoints.restore_newest(manager, _abstract())
  jax.tree.map(np.testing.assert_array_equal, state, _state(20))


def test_the_best_is_of_the_last_phase(tmp_path):
  """Losses of two lengths do not compare."""
  config = default_config()
  config.checkpoint.keep = 9
  with checkpoints.create_manager(config.checkpoint, tmp_path) as manager:
    for step, phase, loss in (
      (10, "phase1", 1.0),
      (20, "phase1", 1.2),
      (30, "phase2", 2.0),
      (40, "phase2", 1.5),
      (50, "phase2", 1.7),
    ):
      figures = {"loss": loss}
      checkpoints.save(manager, _state(step), config, "c", figures, phase)
  found, *_ = checkpoints.load_params(tmp_path, _abstract().params, "best")
  assert found == 40


def test_every_kth_is_kept_for_good(tmp_path):
  config = default_config()
  config.checkpoint.update(keep=1, keep_every_steps=20)
  for step in (10, 20, 30, 40, 50, 60, 70):
    with checkpoints.create_manager(config.checkpoint, tmp_path) as manager:
      checkpoints.save(manager, _state(step), config, "corpus")
  assert checkpoints.list_steps(tmp_path) == [20, 40, 60, 70]


def test_figures_can_be_added_to_a_checkpoint(manager, tmp_path):
  checkpoints.save_figures(manager, 20, {"loss": 0.5, "phase": "phase1"})
  _, meta = checkpoints.restore(tmp_path, _abstract(), "best")
  assert meta["evaluated"] == {"loss": 0.5}


@pytest.mark.parametrize("name", ["run[1]", "back\\slash"])
def test_a_workdir_that_orbax_can_not_read_is_refused_before_the_work(
  tmp_path, name
):
  workdir = tmp_path / name
  with pytest.raises(UserError, match="can't hold checkpoints") as e:
    trial.check_round_trip(workdir)
  assert "\n" not in str(e.value)
  assert not list(workdir.glob("*"))


def test_a_workdir_that_orbax_can_read_is_left_as_it_was(tmp_path):
  workdir = tmp_path / "a run, (of) 'mine' & $HOME"
  for _ in range(2):
    trial.check_round_trip(workdir)
  assert list(workdir.iterdir()) == []


def _make_a_folder(path):
  path.unlink()
  path.mkdir()


@pytest.mark.slow
@pytest.mark.parametrize(
  "damage",
  [
    _flip_a_byte,
    _truncate,
    lambda path: path.write_bytes(b""),
    lambda path: path.unlink(),
    _make_a_folder,
  ],
  ids=["a byte", "half", "empty", "gone", "a folder"],
)
def test_whatever_happens_to_a_file_the_bits_of_a_whole_state_come_back(
  manager, tmp_path, damage
):
  """Of the step itself where the file is not needed, else of the one before."""
  manager.wait_until_finished()
  step = tmp_path / "checkpoints" / "30"
  files = [path for path in step.rglob("*") if path.is_file()]
  assert len(files) > 10
  restored = set()
  for number, path in enumerate(files):
    workdir = tmp_path.with_name(f"{tmp_path.name}_{number}")
    shutil.copytree(tmp_path, workdir)
    damage(workdir / path.relative_to(tmp_path))
    config = default_config().checkpoint
    with checkpoints.create_manager(config, workdir) as other:
      state, _ = checkpoints.restore_newest(other, _abstract())
    found = int(state.step)
    assert found in (20, 30), path
    jax.tree.map(np.testing.assert_array_equal, state, _state(found))
    assert (workdir / "broken" / "30").exists() == (found == 20), path
    restored.add(found)
  assert restored == {20, 30}
