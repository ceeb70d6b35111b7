"""Writes vectors row by row to .npz, .safetensors or .jsonl."""

import dataclasses
import json
import tempfile

import numpy as np
import safetensors.numpy

from bert_jax.storage import paths

SUFFIXES = (".npz", ".jsonl", ".safetensors")


@dataclasses.dataclass(frozen=True)
class Embedded:
  """One row of text as vectors.

  Attributes:
    vectors: float32 [D], or [tokens, D].
    input_ids: int32 [tokens].
    is_cut: whether the row was longer and was cut.
  """

  vectors: np.ndarray
  input_ids: np.ndarray
  is_cut: bool


def save_embeddings(output, embedded, vocab):
  """Writes rows one by one; the file appears when it is whole.

  Args:
    output: path ending in one of `SUFFIXES`.
    embedded: iterable of `Embedded`.
    vocab: list of tokens in the order of their ids.

  Returns:
    number of rows.
  """
  output = paths.as_path(output)
  save = _save_jsonl if output.suffix == ".jsonl" else _save_arrays
  with paths.replaced_file(output) as unfinished:
    return save(unfinished, output.suffix, embedded, vocab)


def _save_jsonl(path, suffix, embedded, vocab):
  del suffix
  num_rows = 0
  with path.open("w") as f:
    for row in embedded:
      num_rows += 1
      vectors = row.vectors.tolist()
      if row.vectors.ndim == 1:
        record = {"embedding": vectors}
      else:
        tokens = [vocab[i] for i in row.input_ids]
        record = {"tokens": tokens, "embeddings": vectors}
      f.write(json.dumps(record) + "\n")
  return num_rows


def _save_arrays(path, suffix, embedded, vocab):
  """Collects the vectors in a temporary file: both formats need their number
  before the first one.
  """
  del vocab
  lengths, shape = [], ()
  with (
    tempfile.TemporaryFile() as vectors_file,
    tempfile.TemporaryFile() as ids_file,
  ):
    for row in embedded:
      shape = row.vectors.shape
      vectors_file.write(row.vectors.tobytes())
      ids_file.write(row.input_ids.tobytes())
      lengths.append(len(row.input_ids))
    arrays = {"embeddings": _map(vectors_file, np.float32, (-1, shape[-1]))}
    if len(shape) == 2:
      arrays["lengths"] = np.array(lengths, np.int64)
      arrays["input_ids"] = _map(ids_file, np.int32, (-1,))
    if suffix == ".npz":
      with path.open("wb") as f:
        np.savez(f, **arrays)
    else:
      path.write_bytes(safetensors.numpy.save(arrays))
  return len(lengths)


def _map(file, dtype, shape):
  """Returns the array that lies in a file, read as it is needed."""
  file.flush()
  return np.memmap(file, dtype, "r").reshape(shape)
