"""Reads the tensors of a Hugging Face folder, in whichever files they are.

`hf_config.py` reads its architecture, `hf_tokenizer.py` its vocabulary, and
`hf.py` gives the tensors our names.
"""

import jax.numpy as jnp
import numpy as np
import safetensors

from bert_jax.errors import UserError
from bert_jax.weights import hf
from bert_jax.weights.folder_files import (
  check_file,
  load_json,
  plain_name,
  read_bytes,
)
from bert_jax.weights.torch_file import load_torch_tensors

_TORCH_FILE = "pytorch_model.bin"
_SAFETENSORS_DTYPES = {
  "BF16": jnp.bfloat16,
  "BOOL": np.bool_,
  "F16": np.float16,
  "F32": np.float32,
  "F64": np.float64,
  "I16": np.int16,
  "I32": np.int32,
  "I64": np.int64,
  "I8": np.int8,
  "U8": np.uint8,
}


def load_tensors(folder):
  """Reads the weights.

  Args:
    folder: `epath.Path`.

  Returns:
    tensors: dict of name to numpy array, in the dtype of the file.
    files: dict of name to the file, `epath.Path`, that holds the tensor.

  Raises:
    UserError: there are none, a file is broken or a shard is missing.
  """
  readers = {
    hf.WEIGHTS_FILE: _load_safetensors,
    _TORCH_FILE: load_torch_tensors,
  }
  for name, read in readers.items():
    path, index = folder / name, folder / f"{name}.index.json"
    if path.exists():
      check_file(path)
      tensors = read(path)
      return tensors, dict.fromkeys(tensors, path)
    if index.exists():
      return _load_shards(index, read)
  raise UserError(
    f"{folder} has no weights; expected {' or '.join(readers)}, or their shards"
    f"{_find_unfinished(folder)}"
  )


def _find_unfinished(folder):
  """Returns words on a download that has not ended, or nothing."""
  for place in (folder, folder / ".cache" / "huggingface" / "download"):
    found = sorted(place.glob("*.incomplete")) if place.is_dir() else ()
    if found:
      return f" ({found[0]} is a download that has not ended)"
  return ""


def _load_shards(index, read):
  weight_map = load_json(index).get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map:
    raise UserError(
      f"{index} has no weight_map; expected an object of tensors and files"
    )
  tensors, files = {}, {}
  # One after the other: a name may be of any type until it is checked.
  for name in weight_map.values():
    plain_name(name, index)
  for name in sorted(set(weight_map.values())):
    path = index.parent / name
    if not path.exists():
      raise UserError(f"{path} is missing; {index.name} lists it")
    check_file(path)
    found = read(path)
    tensors |= found
    files |= dict.fromkeys(found, path)
  missing = sorted(weight_map.keys() - tensors.keys())
  if missing:
    raise UserError(
      f"{index.parent / weight_map[missing[0]]} does not hold {missing[0]}; "
      f"{index.name} says so"
    )
  return tensors, files


def _load_safetensors(path):
  try:
    found = safetensors.deserialize(read_bytes(path))
  except safetensors.SafetensorError as e:
    raise UserError(
      f"{path} can't be read: {e} (expected a whole safetensors file)"
    ) from None
  tensors = {}
  for name, tensor in found:
    if tensor["dtype"] not in _SAFETENSORS_DTYPES:
      raise UserError(
        f"{name} of {path} has dtype {tensor['dtype']}; expected one of "
        f"{', '.join(_SAFETENSORS_DTYPES)}"
      )
    dtype = np.dtype(_SAFETENSORS_DTYPES[tensor["dtype"]])
    array = np.frombuffer(tensor["data"], dtype)
    tensors[name] = array.reshape(tensor["shape"])
  return tensors
