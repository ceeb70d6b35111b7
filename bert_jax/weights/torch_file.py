"""Reads the tensors of a torch.save file, without torch and without its code.

A pickle may run any function. This one is read with an unpickler that knows
the few names a dict of tensors takes and refuses every other, so a file from
a stranger can do no harm.

Its size is bounded too: a file whose tensors have more numbers than it has
bytes (compressed, overlapping or repeated storages) is refused, and so is a
pickle that asks for more memory than its length justifies (pickletools reads it
first).

Two layouts exist (torch/serialization.py): since torch 1.6 a zip of `data.pkl`
and one file a storage; before, five pickles and the storages after them.
"""

import collections
import dataclasses
import io
import math
import pickle
import pickletools
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
# Where training scripts keep the state dict among other things.
_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "module")
_MEMO_OPCODES = ("PUT", "BINPUT", "LONG_BINPUT")


@dataclasses.dataclass(frozen=True)
class _Storage:
  """A flat array in the file, which tensors are views of."""

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
  """Makes a `_View` of every tensor; runs nothing else.

  Attributes:
    storages: {key: `_Storage`} of all that was referred to.
  """

  def __init__(self, file):
    super().__init__(file, encoding="utf-8")
    self.storages = {}

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
    fits = isinstance(dtype, np.dtype) and _are_whole([size])
    if kind != "storage" or any(view) or not fits or not isinstance(key, str):
      raise pickle.UnpicklingError("it refers to something else than numbers")
    return self.storages.setdefault(key, _Storage(key, dtype, size))

  def _rebuild_tensor(self, storage, offset, shape, strides, *unused):
    del unused  # whether it had a gradient, and hooks
    shape, strides = tuple(shape), tuple(strides)
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or not _are_whole(numbers):
      raise pickle.UnpicklingError("a tensor's shape is not of whole numbers")
    return _View(storage, offset, shape, strides)

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
      num_bytes = file.seek(0, 2)
      file.seek(0)
      load = _load_zip if file.read(2) == b"PK" else _load_old
      file.seek(0)
      views, storages = load(file, num_bytes)
    return {
      name: _to_array(view, storages[view.storage.key])
      for name, view in views.items()
    }
  except Exception as e:  # whatever damaged bytes make the readers raise
    reason = " ".join(str(e).split())[:200] or type(e).__name__
    raise UserError(
      f"{path} can't be read: {reason} (expected a whole file of torch.save)"
    ) from None


def _are_whole(numbers):
  return all(type(number) is int and number >= 0 for number in numbers)


def _find_views(value, num_bytes):
  """Returns the tensors of what was unpickled, by name.

  Raises:
    UnpicklingError: there are none, or they have more numbers than the file
      has bytes.
  """
  if isinstance(value, dict):
    inner = (value.get(key) for key in _STATE_DICT_KEYS)
    value = next((v for v in inner if isinstance(v, dict)), value)
  if not isinstance(value, dict):
    raise pickle.UnpicklingError(
      f"it holds a {type(value).__name__}; expected a state dict"
    )
  views = {
    name: view
    for name, view in value.items()
    if isinstance(view, _View) and isinstance(name, str)
  }
  if not views:
    raise pickle.UnpicklingError("it holds no tensors; expected a state dict")
  numbers = sum(math.prod(view.shape) for view in views.values())
  if numbers > num_bytes:
    raise pickle.UnpicklingError(
      f"its tensors have {numbers} numbers; expected at most {num_bytes}, the "
      "bytes of the file"
    )
  return views


def _unpickle(file, num_bytes):
  """Returns (what a pickle holds, {key: `_Storage`}).

  Raises:
    UnpicklingError: it asks for more memory than its bytes can need.
  """
  start = file.tell()
  for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
    if opcode.name in _MEMO_OPCODES and argument > max(number, num_bytes):
      raise pickle.UnpicklingError("it asks for a memo of another size")
  file.seek(start)
  unpickler = _Unpickler(file)
  return unpickler.load(), unpickler.storages


def _load_zip(file, num_bytes):
  """Returns (tensors by name, {key: array}) of torch 1.6 and later."""
  with zipfile.ZipFile(file) as archive:
    members = {info.filename: info for info in archive.infolist()}
    if any(m.compress_type != zipfile.ZIP_STORED for m in members.values()):
      raise zipfile.BadZipFile("it is compressed, which torch.save never does")
    if sum(m.file_size for m in members.values()) > num_bytes:
      raise zipfile.BadZipFile("its parts are larger than the file")
    (pickled,) = (name for name in members if name.endswith("/data.pkl"))
    root = pickled.removesuffix("data.pkl")
    data = io.BytesIO(archive.read(pickled))
    value, _ = _unpickle(data, num_bytes)
    views = _find_views(value, num_bytes)
    order = "little"
    if root + "byteorder" in members:
      order = archive.read(root + "byteorder").decode()
    storages = {
      view.storage.key: np.frombuffer(
        archive.read(f"{root}data/{view.storage.key}"),
        view.storage.dtype.newbyteorder(order),
      )
      for view in {view.storage.key: view for view in views.values()}.values()
    }
  return views, storages


def _load_old(file, num_bytes):
  """Returns (tensors by name, {key: array}) of earlier versions."""
  pickles = [_unpickle(file, num_bytes) for _ in range(5)]
  (magic, _), _, (system, _), (value, known), (keys, _) = pickles
  if magic != _OLD_MAGIC or not system["little_endian"]:
    raise pickle.UnpicklingError("it has no magic number of torch")
  views = _find_views(value, num_bytes)
  storages = {}
  for key in keys:
    size = int.from_bytes(file.read(8), "little")
    if size != known[key].size or size > num_bytes:
      raise pickle.UnpicklingError("a tensor's numbers are of another size")
    data = file.read(size * known[key].dtype.itemsize)
    storages[key] = np.frombuffer(data, known[key].dtype, size)
  return views, storages


def _to_array(view, storage):
  """Copies a tensor out of its storage, which others may share."""
  last = view.offset + sum(
    (size - 1) * stride
    for size, stride in zip(view.shape, view.strides, strict=True)
  )
  if 0 not in view.shape and last >= len(storage):
    raise ValueError(f"a tensor of shape {view.shape} reaches past its storage")
  array = np.lib.stride_tricks.as_strided(
    storage[view.offset :],
    view.shape,
    [stride * storage.itemsize for stride in view.strides],
  )
  return np.array(array, view.storage.dtype)
