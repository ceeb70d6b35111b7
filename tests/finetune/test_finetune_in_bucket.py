"""Fine-tuning, predictions and embeddings at gs://, through the protocol."""

import json

import numpy as np
import pytest

from bert_jax.storage import paths
from tests import commands
from tests.finetune.test_finetune import (
  _data,
  _finetune,
  _folder,  # noqa: F401 (the fixture `folder`)
  _predictions,
  _rows,
)

pytestmark = pytest.mark.slow
SETTINGS = (
  "--config.train.num_epochs=20",
  "--config.eval.every_steps=5",
)


def test_a_bucket_gets_the_bits_that_a_disk_gets(gcs, folder):
  bucket = paths.as_path(gcs.address)
  data = _data(folder, "order.tsv")
  for place in (folder, bucket):
    where = (f"--workdir={place / 'brief'}", f"--output={place / 'model'}")
    _finetune(folder, "classification", *where, *data, *SETTINGS)
  for split in ("train", "eval"):
    expected = _rows(folder / "brief", split)
    assert _rows(bucket / "brief", split) == expected
    assert expected
  first = _predictions(folder / "brief" / "predictions.jsonl")
  assert _predictions(bucket / "brief" / "predictions.jsonl") == first

  input_file = bucket / "order.tsv"
  paths.write_file(input_file, (folder / "order.tsv").read_bytes())
  output = commands.output_of(
    "finetune.predict",
    f"--workdir={bucket / 'brief'}",
    f"--input={input_file}",
    f"--output={bucket / 'again.jsonl'}",
  )
  assert "accuracy" in json.loads(output.splitlines()[-1])
  again = _predictions(bucket / "again.jsonl")
  assert [p["label"] for p in again] == [p["label"] for p in first]

  paths.write_file(bucket / "text.txt", "amber birch\ncedar\n")
  vectors = []
  for place in (folder, bucket):
    commands.output_of(
      "embed",
      f"--init={place / 'model'}",
      f"--input={bucket / 'text.txt'}",
      f"--output={place / 'vectors.npz'}",
    )
    paths.copy_file(paths.as_path(place) / "vectors.npz", folder / "x.npz")
    vectors.append(np.load(folder / "x.npz")["embeddings"])
  np.testing.assert_array_equal(*vectors)
