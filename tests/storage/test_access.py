"""Errors of storage are one line; all others stay what they are."""

import errno
import os
import types

import gcsfs.retry
import pytest

from bert_jax.errors import StorageError, UserError
from bert_jax.storage import paths
from bert_jax.storage.access import storage_errors_told
from tests.gcs_server import faults


def _wrap(error):
  """As orbax wraps what tensorstore raises."""
  try:
    raise Exception("Encountered error while reading array index") from error
  except Exception as e:
    return e


def _system_error(number, name=None):
  return OSError(number, os.strerror(number), name)


def _told(error, path="/run"):
  """Returns what an error is told as."""
  with pytest.raises(UserError) as raised, storage_errors_told(path):
    raise error
  assert "\n" not in str(raised.value)
  return raised.value


@pytest.mark.parametrize(
  "error",
  [
    _system_error(errno.ENOSPC),
    _system_error(errno.EDQUOT),
    _system_error(errno.EFBIG),
    ValueError(
      "RESOURCE_EXHAUSTED: ... [OS error 28: No space left on device]"
    ),
    _wrap(_system_error(errno.ENOSPC)),
  ],
)
def test_a_full_disk_is_one_line(error):
  told = _told(error)
  assert "no room left on the disk of /run" in str(told)
  assert told.status == 2


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EMFILE])
def test_a_disk_that_may_not_be_used_is_one_line_with_the_file(number):
  told = str(_told(_wrap(_system_error(number, "/run/x"))))
  assert told.startswith(f"/run/x can't be used: {os.strerror(number)}")


def test_a_folder_that_somebody_deleted_is_named(tmp_path):
  error = _system_error(errno.ENOENT, "x")
  assert "is gone" in str(_told(error, tmp_path / "run"))
  with pytest.raises(FileNotFoundError), storage_errors_told(tmp_path):
    raise error


@pytest.mark.parametrize(
  "error", [ValueError("other"), ZeroDivisionError(), KeyError("x")]
)
@pytest.mark.parametrize("path", ["/run", "gs://bucket/run"])
def test_other_errors_are_told_as_they_are(error, path):
  with pytest.raises(type(error)), storage_errors_told(path):
    raise error


def test_a_missing_right_is_no_outage(gcs):
  workdir = paths.as_path(gcs.address) / "run"
  gcs.rights = frozenset()
  with (
    pytest.raises(UserError, match="is missing; expected roles/") as raised,
    storage_errors_told(workdir),
  ):
    paths.write_file(workdir / "file", "x")
  assert raised.value.status == 2


def test_an_outage_of_a_bucket_is_one_line_that_asks_to_try_again(
  gcs, monkeypatch
):
  """By the status a supervisor knows that it may start the command again."""

  async def sleep(seconds):
    del seconds

  waiting = types.SimpleNamespace(sleep=sleep)
  monkeypatch.setattr(gcsfs.retry, "asyncio", waiting)
  workdir = paths.as_path(gcs.address) / "run"
  paths.write_file(workdir / "file", "x")
  gcs.faults.add(faults.Fault(faults.STATUS, "", None, status=503))
  for use in (
    lambda: (workdir / "file").read_text(),
    lambda: list(workdir.iterdir()),
    lambda: paths.write_file(workdir / "file", "y"),
  ):
    with (
      pytest.raises(StorageError, match="does not answer") as raised,
      storage_errors_told(workdir),
    ):
      use()
    assert "\n" not in str(raised.value)
    assert raised.value.status == 1
