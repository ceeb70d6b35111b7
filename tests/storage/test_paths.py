"""Files and folders change whole or not at all, on a disk and in a bucket."""

import subprocess
import sys
import types
import zlib

import gcsfs.retry
import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.storage import paths
from tests.gcs_server import faults


@pytest.fixture(name="folder", params=["disk", "bucket"])
def _folder(request, tmp_path):
  """A folder of either storage, which is not there yet."""
  if request.param == "disk":
    return paths.as_path(tmp_path) / "folder"
  server = request.getfixturevalue("gcs")
  return paths.as_path(server.address) / "folder"


@pytest.fixture(name="_impatient")
def _no_waiting(monkeypatch):
  """Keeps gcsfs from waiting between its tries."""

  async def sleep(seconds):
    del seconds

  waiting = types.SimpleNamespace(sleep=sleep)
  monkeypatch.setattr(gcsfs.retry, "asyncio", waiting)


def _names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_an_address_keeps_its_form(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for make in (paths.as_path, paths.absolute):
    assert str(make("gs://bucket/a/b") / "c") == "gs://bucket/a/b/c"
    assert make("gs://bucket/a").parts[2] == "bucket"
  assert str(paths.absolute("a")) == str(tmp_path / "a")
  assert str(paths.as_path("a")) == "a"
  assert "~" not in str(paths.as_path("~/a"))


def test_other_addresses_are_refused():
  with pytest.raises(UserError, match="s3://bucket/a is an address; expected"):
    paths.as_path("s3://bucket/a")


@pytest.mark.parametrize("module", ["gcsfs", "google.cloud.storage"])
def test_a_missing_package_is_told_in_one_line(module):
  program = (
    "import sys\n"
    f"sys.modules[{module!r}] = None\n"
    "from bert_jax.storage import paths\n"
    "paths.as_path('a')\n"
    "paths.as_path('gs://bucket/run')\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=False
  )
  package = module.replace(".", "-")
  message = f"UserError: gs://bucket/run needs the package {package}"
  assert message in done.stderr.splitlines()[-1]


def test_the_client_is_the_same_where_tensorflow_is_installed():
  program = (
    "import importlib.util\n"
    "assert importlib.util.find_spec('tensorflow')\n"
    "import bert_jax.storage.checkpoints\n"
    "from etils import epath\n"
    "backend = epath.Path('gs://bucket/run')._backend\n"
    "client = backend.fs('gs://bucket/run')\n"
    "print(type(client).__name__, client.dircache.use_listings_cache)\n"
  )
  environment = {"NO_GCE_CHECK": "true", "STORAGE_EMULATOR_HOST": "nowhere"}
  done = subprocess.run(
    [sys.executable, "-c", program],
    capture_output=True,
    text=True,
    check=True,
    env=environment,
  )
  assert done.stdout == "GcsClient False\n"


def test_a_file_is_replaced_whole_or_not_at_all(folder):
  path = folder / "file"
  paths.write_file(path, "first")
  with pytest.raises(ZeroDivisionError), paths.replaced_file(path) as new:
    new.write_text("half of the second")
    raise ZeroDivisionError
  assert path.read_text() == "first"
  paths.write_file(path, b"second")
  assert path.read_text() == "second"
  assert _names(folder) == ["file"]


def test_a_folder_is_replaced_whole_or_not_at_all(folder):
  for names in ("ab", "bc"):
    with paths.replaced_folder(folder, "b") as new:
      for name in names:
        paths.write_file(new / name, names)
  with (
    pytest.raises(ZeroDivisionError),
    paths.replaced_folder(folder, "b") as new,
  ):
    paths.write_file(new / "b", "half")
    raise ZeroDivisionError
  assert _names(folder) == ["b", "c"]
  assert (folder / "b").read_text() == "bc"
  assert _names(folder.parent) == ["folder"]


def test_a_folder_moves_over_another(folder):
  for name in ("old/x", "old/in/y", "new/z"):
    paths.write_file(folder / name, name)
  paths.move_folder(folder / "old", folder / "new", "x")
  assert _names(folder) == ["new"]
  assert _names(folder / "new") == ["in", "x"]
  assert (folder / "new/in/y").read_text() == "old/in/y"


def test_a_folder_that_is_not_there_is_removed_without_an_error(folder):
  paths.remove_folder(folder)
  paths.write_file(folder / "file", "")
  paths.remove_folder(folder)
  assert not folder.exists()


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_a_file_of_several_chunks_goes_to_a_bucket_and_back(gcs, tmp_path):
  content = np.random.default_rng(0).bytes(6 * 2**20)
  source, remote = tmp_path / "source", paths.as_path(gcs.address) / "a"
  source.write_bytes(content)
  paths.upload_file(source, remote)
  gcs.faults.add(faults.Fault(faults.CUT_READ, "alt=media"))
  assert paths.copy_file(remote, tmp_path / "b") == zlib.crc32(content)
  assert (tmp_path / "b").read_bytes() == content
  assert not gcs.faults.pending()


def test_the_marker_of_a_folder_goes_first_and_comes_last(gcs):
  folder = paths.as_path(gcs.address) / "folder"
  for number in range(2):
    with paths.replaced_folder(folder, "marker") as new:
      for name in ("marker", "x", "z"):
        paths.write_file(new / name, f"{number}")
  newest = max(gcs.bucket.names(), key=lambda n: gcs.bucket.get(n).generation)
  assert newest == "folder/marker"
  # An upload that fails leaves a folder that nobody takes for whole.
  gcs.faults.add(faults.Fault(faults.STATUS, "uploadType", None, status=403))
  with (
    pytest.raises(OSError, match="Forbidden"),
    paths.replaced_folder(folder, "marker") as new,
  ):
    for name in ("marker", "x", "z"):
      paths.write_file(new / name, "2")
  assert not (folder / "marker").exists()


@pytest.mark.parametrize("copies", [0, 1, 2])
def test_a_move_that_fails_between_two_objects_leaves_the_source(gcs, copies):
  folder = paths.as_path(gcs.address)
  for name in ("marker", "x", "y"):
    paths.write_file(folder / "old" / name, name)
  names = ("marker", "x", "y")[copies:]
  for name in names:
    pattern = f"old/{name}/rewriteTo"
    gcs.faults.add(faults.Fault(faults.STATUS, pattern, status=403))
  with pytest.raises(OSError, match="Forbidden"):
    paths.move_folder(folder / "old", folder / "new", "marker")
  assert _names(folder / "old") == ["marker", "x", "y"]
  gcs.faults.clear()
  paths.move_folder(folder / "old", folder / "new", "marker")
  assert _names(folder) == ["new"]
  assert _names(folder / "new") == ["marker", "x", "y"]


def test_a_source_half_removed_has_lost_its_marker(gcs):
  folder = paths.as_path(gcs.address)
  for name in ("marker", "a", "z"):
    paths.write_file(folder / "old" / name, name)
  fault = faults.Fault(faults.STATUS, "DELETE .*old/[az]", None, status=403)
  gcs.faults.add(fault)
  with pytest.raises(OSError, match="Forbidden"):
    paths.move_folder(folder / "old", folder / "new", "marker")
  assert _names(folder / "old") == ["a", "z"]
  assert _names(folder / "new") == ["a", "marker", "z"]


@pytest.mark.parametrize("status", [429, 502, 503])
def test_an_outage_is_waited_for(gcs, status, _impatient):
  path = paths.as_path(gcs.address) / "file"
  gcs.faults.add(faults.Fault(faults.STATUS, "", 4, status=status))
  paths.write_file(path, "content")
  gcs.faults.add(faults.Fault(faults.STATUS, "", 4, status=status))
  assert path.read_text() == "content"
  assert not gcs.faults.pending()


@pytest.mark.parametrize("status", [403, 502, 503])
@pytest.mark.parametrize("ask", ["exists", "is_dir", "iterdir", "read_text"])
def test_what_can_not_be_asked_is_not_called_missing(
  gcs, ask, status, _impatient
):
  """Else a run whose checkpoints are out of reach would begin anew."""
  path = paths.as_path(gcs.address) / "folder"
  paths.write_file(path / "file", "content")
  gcs.faults.add(faults.Fault(faults.STATUS, "", None, status=status))
  with pytest.raises((OSError, gcsfs.retry.HttpError)) as raised:
    list(getattr(path, ask)())
  assert not isinstance(raised.value, FileNotFoundError)


def test_another_host_is_seen_at_once(gcs):
  """A listing of the past would hide its checkpoints."""
  folder = paths.as_path(gcs.address) / "folder"
  paths.write_file(folder / "a", "")
  assert _names(folder) == ["a"]
  gcs.bucket.put({"name": "folder/b"}, b"from elsewhere")
  assert _names(folder) == ["a", "b"]
  assert (folder / "b").exists()
  gcs.bucket.delete("folder/a")
  assert not (folder / "a").exists()
