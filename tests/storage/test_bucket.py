"""Checkpoints in a bucket, through the protocol; faults, and a trial."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import default_config
from bert_jax.errors import UserError
from bert_jax.storage import checkpoints, paths, trial
from bert_jax.storage import workdir as workdir_lib
from bert_jax.training.train_state import TrainState
from bert_jax.weights.pretrained import load_init
from tests.gcs_server import faults
from tests.gcs_server.api import LEGACY_BUCKET_READER, OBJECT_ADMIN

# orbax leaves coroutines and event loops behind when something fails.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning"
)
ALL_RIGHTS = frozenset(OBJECT_ADMIN + LEGACY_BUCKET_READER)


def _state(step):
  rng = np.random.default_rng(step)
  weights = [rng.normal(size=(64, 33)).astype(np.float32) for _ in range(20)]
  return TrainState(
    step=jnp.int32(step),
    params={f"dense_{i}": jnp.asarray(w) for i, w in enumerate(weights)},
    opt_state=(jnp.asarray(weights[0] ** 2), jnp.int32(step)),
    skipped_steps=jnp.int32(0),
  )


def _abstract():
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), _state(0)
  )


@pytest.fixture(name="workdir")
def _workdir(gcs):
  yield paths.as_path(gcs.address) / "run"
  gc.collect()  # so that the warnings above come within this module


def _save(workdir, *steps):
  config = default_config()
  with checkpoints.create_manager(config.checkpoint, workdir) as manager:
    for step in steps:
      checkpoints.save(manager, _state(step), config, "corpus")


def _restored_step(workdir):
  """Restores as training does; checks every bit and returns the step."""
  config = default_config().checkpoint
  with checkpoints.create_manager(config, workdir) as manager:
    found = checkpoints.restore_newest(manager, _abstract())
  if found is None:
    return None
  step = int(found[0].step)
  jax.tree.map(np.testing.assert_array_equal, found[0], _state(step))
  return step


def _exported_step(workdir):
  """Returns the step that export and evaluation take as the newest."""
  return checkpoints.load_params(workdir, _abstract().params)[0]


def _damage(gcs, step, change):
  """Changes every object of a checkpoint that holds numbers."""
  for name in gcs.bucket.names():
    if f"/{step}/state/" in name and "/d/" in name:
      data = bytearray(gcs.bucket.get(name).data)
      gcs.bucket.put({"name": name}, change(data))


def _flip_a_byte(data):
  data[len(data) // 2] ^= 0x10
  return data


def _cut(data):
  return data[: len(data) // 2]


def test_a_checkpoint_in_a_bucket_is_saved_found_and_restored(workdir):
  """The quick witness of gs://: with the clients of a pod."""
  _save(workdir, 10, 20)
  assert str(workdir).startswith("gs://")
  assert _restored_step(workdir) == 20
  assert _exported_step(workdir) == 20


@pytest.mark.parametrize("lost", ["only the commit", "the commit and arrays"])
def test_a_checkpoint_that_was_not_committed_never_counts(gcs, workdir, lost):
  _save(workdir, 10, 20)
  for name in gcs.bucket.names():
    is_commit = name == f"run/checkpoints/20/{checkpoints.COMMIT_FILE}"
    is_array = "/20/" in name and "/d/" in name
    if is_commit or (is_array and lost != "only the commit"):
      gcs.bucket.delete(name)
  assert _exported_step(workdir) == 10
  with pytest.raises(UserError, match="no checkpoint 20; it has: 10"):
    checkpoints.load_params(workdir, _abstract().params, 20)
  assert _restored_step(workdir) == 10
  _save(workdir, 20)
  assert _restored_step(workdir) == 20


@pytest.mark.parametrize("change", [_flip_a_byte, _cut])
def test_a_damaged_checkpoint_is_put_aside_and_the_older_one_used(
  gcs, workdir, change, capsys
):
  _save(workdir, 10, 20)
  _damage(gcs, 20, change)
  assert _restored_step(workdir) == 10
  assert "checkpoint 20 is broken and put aside" in capsys.readouterr().out
  names = gcs.bucket.names()
  assert not [name for name in names if name.startswith("run/checkpoints/20/")]
  assert f"run/broken/20/{checkpoints.COMMIT_FILE}" in names
  _save(workdir, 20)
  assert _restored_step(workdir) == 20


@pytest.mark.slow
def test_an_outage_while_saving_and_restoring_is_waited_for(gcs, workdir):
  _save(workdir, 10)
  for pattern in ("^POST", "^GET", "^GET .*alt=media", "^DELETE"):
    gcs.faults.add(faults.Fault(faults.STATUS, pattern))
  _save(workdir, 20, 30, 40)  # and deletes the one that is not kept
  assert _restored_step(workdir) == 40
  assert not gcs.faults.pending()


def test_slow_storage_works(gcs, workdir):
  gcs.faults.add(faults.Fault(faults.DELAY, "", times=None, seconds=0.02))
  _save(workdir, 10)
  assert _restored_step(workdir) == 10


@pytest.mark.parametrize("kind", [faults.CUT_WRITE, faults.NO_ANSWER])
def test_a_write_that_breaks_off_is_written_again(gcs, workdir, kind):
  gcs.faults.add(faults.Fault(kind, "^POST /upload", times=6))
  _save(workdir, 10)
  assert not gcs.faults.pending()
  assert _restored_step(workdir) == 10


def test_reads_that_break_off_are_read_again(gcs, workdir):
  _save(workdir, 10)
  gcs.faults.add(faults.Fault(faults.CUT_READ, "alt=media", times=2))
  assert _restored_step(workdir) == 10


@pytest.mark.parametrize("status", [400, 403])
def test_a_save_that_fails_leaves_the_checkpoint_before(gcs, workdir, status):
  _save(workdir, 10)
  pattern = "uploadType.*/20/state/ocdbt"
  gcs.faults.add(faults.Fault(faults.STATUS, pattern, None, status=status))
  with pytest.raises(Exception, match=str(status)):
    _save(workdir, 20)
  gcs.faults.clear()
  assert _exported_step(workdir) == 10
  assert _restored_step(workdir) == 10


def test_a_trial_leaves_nothing(gcs, workdir, capsys):
  trial.check_storage(workdir)
  assert gcs.bucket.names() == []
  assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_trial_works_on_a_disk(tmp_path):
  trial.check_storage(paths.as_path(tmp_path) / "run")
  assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize(
  "right", sorted(ALL_RIGHTS - {"storage.objects.update"})
)
def test_a_trial_names_the_right_that_is_missing(gcs, workdir, right):
  gcs.rights = ALL_RIGHTS - {right}
  role = "legacyBucketReader" if "buckets" in right else "objectAdmin"
  with pytest.raises(UserError, match=f"{right} is missing; .*roles/.*{role}"):
    trial.check_storage(workdir)


@pytest.mark.parametrize("use", [trial.check_storage, workdir_lib.load_config])
def test_a_bucket_that_is_not_there_is_told_in_one_line(gcs, use):
  with pytest.raises(UserError, match="there is no such bucket") as raised:
    use(paths.as_path("gs://nobody-has-this/run"))
  assert "\n" not in str(raised.value)


def test_a_model_out_of_reach_is_told_in_one_line(gcs):
  gcs.rights = ALL_RIGHTS - {"storage.objects.get", "storage.objects.list"}
  with pytest.raises(UserError, match=r"storage\.objects\.\w+ is missing"):
    load_init(f"{gcs.address}/model")
