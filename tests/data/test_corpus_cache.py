"""A corpus at an address: uploaded once, copied to each host's disk once."""

import shutil

import numpy as np
import pytest

from bert_jax.config import default_config
from bert_jax.data import corpus_cache, preparation
from bert_jax.data.writing import corpus_writer
from bert_jax.errors import UserError
from tests import texts


def _prepare(gcs, tmp_path, monkeypatch, host):
  """Prepares on a host with its own disk; returns the corpus' address."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / host))
  texts.write_text(tmp_path / "a.txt", texts.make_documents(60, 6))
  config = default_config()
  config.corpus.source = str(tmp_path / "a.txt")
  config.corpus.vocab_size = 200
  config.phase1.update(max_seq_length=32, batch_size=8)
  config.phase2.update(max_seq_length=64, batch_size=4)
  return preparation.prepare(config, f"{gcs.address}/run")


def test_every_host_maps_the_same_corpus_from_its_own_disk(
  gcs, tmp_path, monkeypatch, capsys
):
  address = _prepare(gcs, tmp_path, monkeypatch, "first")
  assert str(address) == f"{gcs.address}/run/corpus"
  assert "uploading" in capsys.readouterr().out
  first = corpus_cache.open_corpus(address)
  assert "copying" not in capsys.readouterr().out  # it was written there

  assert _prepare(gcs, tmp_path, monkeypatch, "second") == address
  assert "is prepared already" in capsys.readouterr().out
  second = corpus_cache.open_corpus(address)
  assert f"copying the index of {address} to" in capsys.readouterr().out
  assert second.fingerprint == first.fingerprint
  np.testing.assert_array_equal(second.tokens[:], first.tokens[:])
  assert (second.documents == first.documents).all()
  assert "tokens-00000.bin to" in capsys.readouterr().out
  assert list((tmp_path / "second").rglob("tokens-00000.bin"))

  corpus_cache.open_corpus(address, needs_all=True).tokens[:]
  assert capsys.readouterr().out == ""
  vocab = gcs.bucket.get("run/vocab.txt").data.decode()
  assert vocab.split() == first.vocab


@pytest.mark.parametrize(
  "name", ["tokens-00000.bin", "sentences.bin", "documents.npy", "vocab.txt"]
)
def test_a_file_damaged_on_its_way_is_named_and_not_used(
  gcs, tmp_path, monkeypatch, name
):
  address = _prepare(gcs, tmp_path, monkeypatch, "first")
  content = bytearray(gcs.bucket.get(f"run/corpus/{name}").data)
  content[len(content) // 2] ^= 1
  gcs.bucket.put({"name": f"run/corpus/{name}"}, content)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
  for _ in range(2):  # nor the next time
    with pytest.raises(UserError, match=f"{name} has the checksum"):
      corpus_cache.open_corpus(address).tokens[:]


def test_an_address_without_a_corpus_is_an_error(gcs):
  with pytest.raises(UserError, match="holds no prepared corpus"):
    corpus_cache.open_corpus(f"{gcs.address}/nowhere")


def test_a_corpus_that_the_disk_can_not_hold_is_not_copied(
  gcs, tmp_path, monkeypatch
):
  address = _prepare(gcs, tmp_path, monkeypatch, "first")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
  usage = shutil.disk_usage(tmp_path)._replace(free=1000)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  with pytest.raises(UserError, match=r"0\.0 GB of free disk; expected"):
    corpus_cache.open_corpus(address)
  assert not list((tmp_path / "second").rglob("*.bin"))


def test_a_host_copies_the_shards_that_its_rows_need(
  gcs, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(corpus_writer, "SHARD_TOKENS", 500)
  address = _prepare(gcs, tmp_path, monkeypatch, "first")
  whole = corpus_cache.open_corpus(address).tokens[:]
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
  corpus = corpus_cache.open_corpus(address)

  def copied():
    found = (tmp_path / "second").rglob("tokens*.bin")
    return sorted(path.name for path in found)

  assert copied() == []
  for wanted in ([501, 502], [999, 1500]):
    np.testing.assert_array_equal(
      corpus.tokens[np.array(wanted)], whole[wanted]
    )
  assert copied() == [f"tokens-{n:05d}.bin" for n in (1, 3)]
  # The next start finds them right, and copies the rest only.
  capsys.readouterr()
  np.testing.assert_array_equal(
    corpus_cache.open_corpus(address).tokens[:], whole
  )
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == len(copied()) - 2 > 2


def test_training_is_refused_where_not_all_shards_have_room(
  gcs, tmp_path, monkeypatch
):
  """At once; what needs a few shards goes on, and ends at a full disk."""
  monkeypatch.setattr(corpus_writer, "SHARD_TOKENS", 500)
  address = _prepare(gcs, tmp_path, monkeypatch, "first")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
  corpus = corpus_cache.open_corpus(address)
  sizes = corpus.manifest["file_bytes"]
  free = sum(sizes.values()) - sizes["sentences.bin"] - 1
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(shutil, "disk_usage", lambda p: usage._replace(free=free))
  with pytest.raises(UserError, match="of free disk; expected"):
    corpus_cache.open_corpus(address, needs_all=True)
  assert len(corpus.tokens[:10]) == 10
  monkeypatch.setattr(shutil, "disk_usage", lambda p: usage._replace(free=999))
  with pytest.raises(UserError, match="of free disk; expected"):
    corpus.tokens[:501]
