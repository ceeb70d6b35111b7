"""A corpus encoded in parts, by workers in any order, has the same bytes."""

import os
import pathlib
import random
import subprocess
import sys

import pytest

from bert_jax.config import default_config
from bert_jax.data import preparation
from bert_jax.data.writing import chunks, parts
from bert_jax.errors import UserError
from tests import texts

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(name="config")
def _config(tmp_path, monkeypatch):
  """Settings of seven files, one of them empty, one with copies of another."""
  documents = texts.make_documents(140, 8)
  (tmp_path / "in").mkdir()
  for number in range(6):
    part = documents[25 * number : 25 * number + 35]
    texts.write_text(tmp_path / "in" / f"{number}.txt", part)
  (tmp_path / "in" / "empty.txt").write_text("\n")
  monkeypatch.setattr(chunks, "CHUNK_BYTES", 3000)
  config = default_config()
  config.corpus.source = f"{tmp_path}/in/*.txt"
  config.corpus.vocab_size = 200
  config.phase1.update(max_seq_length=32, batch_size=8)
  config.phase2.update(max_seq_length=64, batch_size=4)
  return config


def _files(directory):
  return {
    path.name: path.read_bytes()
    for path in directory.iterdir()
    if path.name != "verified.json"
  }


def test_parts_in_any_order_give_the_same_bytes(tmp_path, config):
  whole = _files(preparation.prepare(config, tmp_path / "whole"))
  numbers = list(range(3))
  random.Random(0).shuffle(numbers)
  for number in [*numbers, numbers[0]]:  # one of them twice
    preparation.prepare_part(config, tmp_path / "parts", number, 3)
  assert _files(preparation.prepare(config, tmp_path / "parts")) == whole


# A process of its own: datatrove forks, which JAX in this one forbids.
_DATATROVE = """
import json, sys, ml_collections
from datatrove.executor import LocalPipelineExecutor
from bert_jax.data.writing.datatrove_step import EncodeSources

if __name__ == "__main__":
  config = ml_collections.ConfigDict(json.loads(sys.argv[1]))
  LocalPipelineExecutor(
    pipeline=[EncodeSources(config, sys.argv[2])],
    tasks=3,
    workers=2,
    logging_dir=sys.argv[3],
    randomize_start_duration=1,
  ).run()
"""


@pytest.mark.slow
def test_two_workers_of_datatrove_give_the_same_bytes(tmp_path, config):
  whole = _files(preparation.prepare(config, tmp_path / "whole"))
  script = tmp_path / "encode.py"
  script.write_text(_DATATROVE)
  workdir, logs = tmp_path / "datatrove", tmp_path / "logs"
  subprocess.run(
    [sys.executable, script, config.to_json(), workdir, logs],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    check=True,
  )
  merged = preparation.prepare(config, workdir)
  assert _files(merged) == whole


def test_a_missing_part_is_told_and_what_is_there_is_kept(tmp_path, config):
  preparation.prepare_part(config, tmp_path, 0, 2)
  with pytest.raises(UserError, match="lacks 3 of 7 sources, such as number 1"):
    preparation.prepare(config, tmp_path)
  preparation.prepare_part(config, tmp_path, 1, 2)
  directory = preparation.prepare(config, tmp_path)
  assert not parts.folder(directory).exists()


def test_parts_of_other_text_are_refused(tmp_path, config):
  preparation.prepare_part(config, tmp_path / "w", 0, 2)
  (tmp_path / "in" / "0.txt").write_text("Other text.")
  with pytest.raises(UserError, match="other settings or other text"):
    preparation.prepare_part(config, tmp_path / "w", 1, 2)


def test_an_address_is_refused(config):
  with pytest.raises(UserError, match="folder that all machines share"):
    preparation.prepare_part(config, "gs://bucket/run", 0, 2)
