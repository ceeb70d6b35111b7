"""The server answers real clients as Cloud Storage does."""

import io

import gcsfs
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import requests
import tensorstore
from google.api_core import exceptions
from google.cloud import storage

from bert_jax.storage import paths
from tests.gcs_server import api, faults


@pytest.fixture(name="server")
def _server(gcs):
  return gcs


@pytest.fixture(name="bucket")
def _bucket(server):
  return storage.Client().bucket(server.bucket.name)


@pytest.fixture(name="folder")
def _folder(server):
  return paths.as_path(server.address) / "folder"


def _open_store(server):
  spec = {"driver": "gcs", "bucket": server.bucket.name, "path": "store/"}
  return tensorstore.KvStore.open(spec).result()


def _random_bytes(size):
  return np.random.default_rng(0).bytes(size)


@pytest.mark.parametrize("chunk_size", [None, 2**18])
def test_an_upload_comes_back_whole_and_in_ranges(bucket, chunk_size):
  content = _random_bytes(2**20 + 7)
  blob = bucket.blob("a/b c", chunk_size=chunk_size)
  blob.upload_from_file(io.BytesIO(content), checksum="crc32c")
  assert bucket.blob("a/b c").download_as_bytes(checksum="md5") == content
  part = bucket.blob("a/b c").download_as_bytes(start=2**19, end=2**19 + 9)
  assert part == content[2**19 : 2**19 + 10]
  with pytest.raises(exceptions.ClientError, match="416"):
    bucket.blob("a/b c").download_as_bytes(start=2**21)


def test_a_media_upload_needs_no_resource(server):
  address = f"{server.url}/upload/storage/v1/b/{server.bucket.name}/o"
  query = {"uploadType": "media", "name": "x"}
  sent = requests.post(address, params=query, data=b"content", timeout=5)
  assert sent.json()["size"] == "7"
  assert server.bucket.get("x").data == b"content"


def test_a_wrong_checksum_stores_nothing(server, bucket):
  blob = bucket.blob("x")
  blob.md5_hash = "AAAAAAAAAAAAAAAAAAAAAA=="
  with pytest.raises(exceptions.BadRequest):
    blob.upload_from_string(b"content")
  assert server.bucket.names() == []


def test_generations_rise_and_are_preconditions(bucket):
  blob = bucket.blob("x")
  blob.upload_from_string(b"1", if_generation_match=0)
  first = blob.generation
  with pytest.raises(exceptions.PreconditionFailed):
    bucket.blob("x").upload_from_string(b"2", if_generation_match=0)
  blob.upload_from_string(b"2", if_generation_match=first)
  assert blob.generation > first
  with pytest.raises(exceptions.NotFound):
    bucket.blob("x", generation=first).download_as_bytes()
  with pytest.raises(exceptions.PreconditionFailed):
    blob.delete(if_generation_match=first)
  blob.delete()
  assert not blob.exists()


def test_listings_fold_prefixes_and_come_in_pages(server, bucket):
  for name in ("a/1", "a/2", "a/b/3", "a0", "c"):
    bucket.blob(name).upload_from_string(b"")

  def names(**query):
    return [x.name for x in bucket.list_blobs(**query)]

  everything = ["a/1", "a/2", "a/b/3", "a0", "c"]
  assert names(page_size=2) == everything
  assert len([r for r in server.requests if "pageToken" in r[1]]) == 2
  assert names(prefix="a/", delimiter="/") == ["a/1", "a/2"]
  assert names(start_offset="a/2", end_offset="c") == ["a/2", "a/b/3", "a0"]
  pages = bucket.list_blobs(delimiter="/", page_size=1)
  assert [x.name for x in pages] == ["a0", "c"]
  assert pages.prefixes == {"a/"}


def test_objects_are_composed_rewritten_and_moved(server, bucket):
  for name in "xy":
    bucket.blob(name).upload_from_string(name * 3)
  composed = bucket.blob("z")
  composed.compose([bucket.blob("x"), bucket.blob("y")])
  assert composed.component_count == 2
  assert composed.md5_hash is None
  token, done, size = bucket.blob("copy").rewrite(composed)
  assert (done, size) == (0, 6)
  assert bucket.blob("copy").rewrite(composed, token=token) == (None, 6, 6)
  bucket.move_blob(bucket.blob("copy"), "moved")
  assert server.bucket.names() == ["moved", "x", "y", "z"]
  assert bucket.blob("moved").download_as_bytes() == b"xxxyyy"


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_gcsfs_finds_what_epath_writes(server, folder):
  (folder / "a" / "b").write_text("text")
  (folder / "a" / "b").rename(folder / "a" / "c")
  assert (folder / "a" / "c").read_text() == "text"
  assert [path.name for path in folder.iterdir()] == ["a"]
  files = gcsfs.core.GCSFileSystem(use_listings_cache=False)
  content = _random_bytes(6 * 2**20)  # more than one chunk
  with files.open(f"{server.bucket.name}/big", "wb", block_size=2**18) as f:
    f.write(content)
  assert files.cat(f"{server.bucket.name}/big") == content
  assert files.find(server.bucket.name) == [
    f"{server.bucket.name}/big",
    f"{server.bucket.name}/folder/a/c",
  ]
  folder.rmtree()
  assert not folder.exists()


def test_tensorstore_keeps_to_generations(server):
  store = _open_store(server)
  content = _random_bytes(1000)
  first = store.write("a", content).result().generation
  assert store.read("a").result().value == content
  store.write("a", b"2", if_equal=first).result()
  assert store.write("a", b"3", if_equal=first).result().generation != first
  assert store.read("a").result().value == b"2"
  assert store.list().result() == [b"a"]
  store.delete_range(tensorstore.KvStore.KeyRange("a", "b")).result()
  assert server.bucket.names() == []


def test_orbax_carries_many_arrays(server, folder):
  state = {f"{i}": jnp.arange(300, dtype=jnp.float32) + i for i in range(100)}
  items = {"state": ocp.args.StandardSave(state)}
  with ocp.CheckpointManager(folder, item_names=("state",)) as manager:
    manager.save(1, args=ocp.args.Composite(**items))
  assert any("manifest.ocdbt" in name for name in server.bucket.names())
  with ocp.CheckpointManager(folder, item_names=("state",)) as manager:
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    items = {"state": ocp.args.StandardRestore(abstract)}
    found = manager.restore(1, args=ocp.args.Composite(**items))["state"]
  jax.tree.map(np.testing.assert_array_equal, found, state)
  assert 501 not in server.statuses()


def test_each_right_is_needed(server, bucket):
  blob = bucket.blob("x")
  blob.upload_from_string(b"1")
  uses = {
    "storage.buckets.get": lambda: storage.Client().get_bucket(bucket.name),
    "storage.objects.create": lambda: bucket.blob("y").upload_from_string(b""),
    "storage.objects.get": blob.download_as_bytes,
    "storage.objects.list": lambda: list(bucket.list_blobs()),
    "storage.objects.delete": blob.delete,
  }
  for right, use in uses.items():
    server.rights = frozenset(api.OBJECT_ADMIN + api.LEGACY_BUCKET_READER) - {
      right
    }
    with pytest.raises(exceptions.Forbidden, match=right):
      use()
  with pytest.raises(exceptions.Forbidden, match=r"storage\.objects\.delete"):
    blob.upload_from_string(b"overwriting deletes")


def test_an_error_of_the_service_is_retried(server, bucket):
  server.faults.add(faults.Fault(faults.STATUS, "^POST"))
  bucket.blob("x").upload_from_string(b"1")
  assert server.statuses().count(503) == 1
  assert server.bucket.get("x").data == b"1"


def test_a_cut_write_stores_nothing(server):
  server.faults.add(faults.Fault(faults.CUT_WRITE, "uploadType", times=1))
  address = f"{server.url}/upload/storage/v1/b/{server.bucket.name}/o"
  query = {"uploadType": "media", "name": "x"}
  content = _random_bytes(2**20)
  with pytest.raises(requests.ConnectionError):
    requests.post(address, params=query, data=content, timeout=5)
  assert server.bucket.names() == []


def test_a_cut_read_is_noticed(server, bucket):
  bucket.blob("x").upload_from_string(_random_bytes(2**20))
  server.faults.add(faults.Fault(faults.CUT_READ, "alt=media"))
  address = bucket.blob("x").path
  whole = f"{server.url}/storage/v1{address}?alt=media"
  with pytest.raises(requests.exceptions.RequestException):
    requests.get(whole, timeout=5)
  assert len(requests.get(whole, timeout=5).content) == 2**20


def test_an_answer_that_is_lost_leaves_the_object(server, bucket):
  server.faults.add(faults.Fault(faults.NO_ANSWER, "uploadType"))
  with pytest.raises(exceptions.PreconditionFailed):
    # The second try finds what the first one stored.
    bucket.blob("x").upload_from_string(b"1", if_generation_match=0)
  assert server.bucket.get("x").data == b"1"
