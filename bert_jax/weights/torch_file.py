"""Reads the tensors of a torch.save file, without torch and without its code.

A pickle may run any function. This one is read with an unpickler that knows
the few names a dict of tensors takes and refuses every other, so a file from
a stranger can do no harm.

Two layouts exist (torch/serialization.py): since torch 1.6 a zip of `data.pkl`
and one file a storage; before, five pickles and the storages after them.
"""

import collections
import dataclasses
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np

from bert_jax.errors import UserError

# The first pickle of the old layout.
_OLD_MAGIC = 0x1950A86A20F9469CFC6C

_STORAGE_DTYPES = {
  "BFloat16Storage": jnp.bfloat16,
  "BoolStorage": np.bool_,
  "ByteStorage": np.uint8,
  "CharStorage": np.int8,
  "DoubleStorage": np.float64,
  "FloatStorage": np.float32,
  "HalfStorage": np.float16,
  "IntStorage": np.int32,
  "LongStorage": np.int64,
  "ShortStorage": np.int16,
}


@dataclasses.dataclass(frozen=True)
class _Storage:
  """Numbers in a row that tensors look at: where they are and what."""

  key: str
  dtype: np.dtype
  size: int


@dataclasses.dataclass(frozen=True)
class _View:
  """A tensor before its storage is read; offset and strides in elements."""

  storage: _Storage
  offset: int
  shape: tuple
  strides: tuple


class _Unpickler(pickle.Unpickler):
  """Makes a `_View` of every tensor; runs nothing else."""

  def find_class(self, module, name):
    if module == "torch" and name in _STORAGE_DTYPES:
      return np.dtype(_STORAGE_DTYPES[name])
    if module == "torch._utils" and name == "_rebuild_tensor_v2":
      return self._rebuild_tensor
    if module == "torch._utils" and name == "_rebuild_parameter":
      return self._rebuild_parameter
    if (module, name) == ("collections", "OrderedDict"):
      return collections.OrderedDict
    raise pickle.UnpicklingError(
      f"it holds a {module}.{name}; expected a state dict, tensors by name"
    )

  def persistent_load(self, reference):
    kind, dtype, key, _, size, *view = reference
    if kind != "storage" or any(view):
      raise pickle.UnpicklingError(f"unknown reference {reference!r:.80}")
    return _Storage(key, dtype, size)

  def _rebuild_tensor(self, storage, offset, shape, strides, *unused):
    del unused  # whether it had a gradient, and hooks
    return _View(storage, offset, tuple(shape), tuple(strides))

  def _rebuild_parameter(self, tensor, *unused):
    del unused
    return tensor


def load_torch_tensors(path):
  """Reads a dict of tensors that torch.save wrote.

  Args:
    path: `epath.Path`.

  Returns:
    dict of name to numpy array, in the dtype of the file; what is no tensor
    is left out.

  Raises:
    UserError: the file is broken, or holds more than tensors.
  """
  try:
    with path.open("rb") as file:
      load = _load_zip if file.read(2) == b"PK" else _load_old
      file.seek(0)
      views, storages = load(file)
      if not isinstance(views, dict):
        raise pickle.UnpicklingError(
          f"it holds a {type(views).__name__}; expected a state dict"
        )
      return {
        name: _to_array(view, storages[view.storage.key])
        for name, view in views.items()
        if isinstance(view, _View)
      }
  except Exception as e:  # whatever damaged bytes make the readers raise
    reason = " ".join(str(e).split())[:200] or type(e).__name__
    raise UserError(
      f"{path} can't be read: {reason} (expected a whole file of torch.save)"
    ) from None


def _load_zip(file):
  """Returns (unpickled object, {key: array}) of torch 1.6 and later."""
  with zipfile.ZipFile(file) as archive:
    (pickled,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
    root = pickled.removesuffix("data.pkl")
    with archive.open(pickled) as f:
      views = _Unpickler(f, encoding="utf-8").load()
    order = "little"
    if root + "byteorder" in archive.namelist():
      order = archive.read(root + "byteorder").decode()
    storages = {
      storage.key: np.frombuffer(
        archive.read(f"{root}data/{storage.key}"),
        storage.dtype.newbyteorder(order),
      )
      for storage in _storages(views)
    }
  return views, storages


def _load_old(file):
  """Returns (unpickled object, {key: array}) of earlier versions."""
  magic, _, system, views, keys = (
    _Unpickler(file, encoding="utf-8").load() for _ in range(5)
  )
  if magic != _OLD_MAGIC or not system["little_endian"]:
    raise pickle.UnpicklingError("it has no magic number of torch")
  of_key = {storage.key: storage for storage in _storages(views)}
  storages = {}
  for key in keys:
    size = int.from_bytes(file.read(8), "little")
    dtype = of_key[key].dtype
    data = file.read(size * dtype.itemsize)
    storages[key] = np.frombuffer(data, dtype, size)
  return views, storages


def _storages(views):
  """Returns each storage that some tensor looks at, once."""
  values = views.values() if isinstance(views, dict) else ()
  return {view.storage for view in values if isinstance(view, _View)}


def _to_array(view, storage):
  """Copies a tensor out of its storage, which others may share."""
  last = view.offset + sum(
    (size - 1) * stride
    for size, stride in zip(view.shape, view.strides, strict=True)
  )
  numbers = (view.offset, *view.shape, *view.strides)
  if 0 not in view.shape and (min(numbers) < 0 or last >= len(storage)):
    raise ValueError(f"a tensor of shape {view.shape} reaches past its storage")
  array = np.lib.stride_tricks.as_strided(
    storage[view.offset :],
    view.shape,
    [stride * storage.itemsize for stride in view.strides],
  )
  return np.array(array, view.storage.dtype)
