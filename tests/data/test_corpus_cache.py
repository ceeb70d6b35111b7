"""A corpus at an address: uploaded once, copied to each host's disk once."""

import shutil

import pytest

from bert_jax.config import default_config
from bert_jax.data import corpus_cache, preparation
from bert_jax.data.corpus import open_corpus
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
  first = open_corpus(corpus_cache.fetch(address))
  assert "copying" not in capsys.readouterr().out  # it was written there

  assert _prepare(gcs, tmp_path, monkeypatch, "second") == address
  assert "is prepared already" in capsys.readouterr().out
  local = corpus_cache.fetch(address)
  assert local.is_relative_to(tmp_path / "second")
  second = open_corpus(local)
  assert "copying" in capsys.readouterr().out
  assert second.fingerprint == first.fingerprint
  assert (second.tokens == first.tokens).all()
  assert (second.documents == first.documents).all()

  corpus_cache.fetch(address)
  assert capsys.readouterr().out == ""
  vocab = gcs.bucket.get("run/vocab.txt").data.decode()
  assert vocab.split() == first.vocab


@pytest.mark.parametrize(
  "name", ["tokens.bin", "sentences.bin", "documents.npy", "vocab.txt"]
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
      corpus_cache.fetch(address)


def test_an_address_without_a_corpus_is_an_error(gcs):
  with pytest.raises(UserError, match="holds no prepared corpus"):
    corpus_cache.fetch(f"{gcs.address}/nowhere")


def test_a_folder_is_used_where_it_is(tmp_path):
  assert corpus_cache.fetch(tmp_path) == tmp_path


def test_a_corpus_that_the_disk_can_not_hold_is_not_copied(
  gcs, tmp_path, monkeypatch
):
  address = _prepare(gcs, tmp_path, monkeypatch, "first")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
  usage = shutil.disk_usage(tmp_path)._replace(free=1000)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  with pytest.raises(UserError, match=r"0\.0 GB of free disk; expected"):
    corpus_cache.fetch(address)
  assert not list((tmp_path / "second").rglob("tokens.bin"))
