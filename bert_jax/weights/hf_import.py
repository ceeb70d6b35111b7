"""Makes parameters of Hugging Face's tensors, whoever named and sized them.

A config may claim any size and any number of layers: nothing is made before the
names and shapes of the tensors have reached it.
"""

import functools
import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.errors import UserError
from bert_jax.model.bert import create_params
from bert_jax.weights import hf

# Tied tensors that some files repeat -> the tensor that they equal.
_TIED = {
  "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
  "cls.predictions.decoder.bias": "cls.predictions.bias",
}

_MASKED_LM_HEAD = "cls.predictions."
# Parameters that every source must hold.
_NEEDED = ("bert/embeddings", "bert/encoder")
_LAYER_NAME = re.compile(r"bert\.encoder\.layer\.(\d{1,9})\.")
_LAYER_BIAS = "bert.encoder.layer.{}.intermediate.dense.bias"
# Where each size shows: tensor, axis, field of the config.
_EMBEDDINGS = "bert.embeddings.{}_embeddings.weight"
_SIZES = (
  (_EMBEDDINGS.format("word"), 0, "vocab_size"),
  (_EMBEDDINGS.format("word"), 1, "hidden_size"),
  (_EMBEDDINGS.format("position"), 0, "max_position_embeddings"),
  (_EMBEDDINGS.format("token_type"), 0, "type_vocab_size"),
  (_LAYER_BIAS.format(0), 0, "intermediate_size"),
)


def from_hf(tensors, config, files=None):
  """Converts Hugging Face's tensors to parameters.

  Args:
    tensors: dict of name to numpy array, of any BERT class. Names without
      the "bert." prefix, with DataParallel's "module." before them, and
      TensorFlow's LayerNorm names are understood.
    config: `BertConfig`, perhaps of a stranger: its sizes count only as far as
      the tensors reach.
    files: dict of name to the file that holds the tensor, for messages.

  Returns:
    params: nested dict of float32 numpy arrays. The pooler and the
      pretraining heads are there if the tensors hold them.
    unused: tuple of names that have no place in it, such as another head's;
      buffers and copies of tied tensors are not among them.

  Raises:
    UserError: a tensor of the embeddings or the encoder is missing, or a
      shape does not fit `config`.
  """
  files = files or {}
  found = _modern_names(tensors, files)
  _check_sizes(found, tensors, config, files)
  shapes = _abstract_params(config)
  params, used = {}, set()
  for path, abstract in hf.flatten(shapes).items():
    name = hf.hf_name(path)
    spelled = found.get(name)
    if spelled is None:
      if path.startswith(_NEEDED):
        raise _missing(name, found, files)
      continue
    used.add(spelled)
    where = _where(name, spelled, files)
    params[path] = _from_tensor(path, config, tensors[spelled], abstract, where)
  unused = tuple(
    spelled
    for name, spelled in found.items()
    if spelled not in used
    and not name.endswith("position_ids")
    and not _is_tied_copy(name, tensors[spelled], found, tensors)
  )
  return flax.traverse_util.unflatten_dict(params, sep="/"), unused


@functools.lru_cache(maxsize=4)
def _abstract_params(config):
  return jax.eval_shape(lambda: create_params(config, jax.random.key(0)))


def _modern_names(tensors, files):
  """Returns {name as `BertForPreTraining` spells it today: name as it is}."""
  found = {}
  for spelled in tensors:
    name = re.sub(r"^((module|_orig_mod|model)\.)+", "", spelled)
    name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
    name = re.sub(r"^(?=(embeddings|encoder|pooler)\.)", "bert.", name)
    other = found.setdefault(name, spelled)
    if other != spelled and not np.array_equal(
      tensors[other], tensors[spelled]
    ):
      raise UserError(
        f"{_where(spelled, spelled, files)} and {other} are two tensors for "
        f"{name}; expected one"
      )
  return found


def _where(name, spelled, files):
  """Returns a tensor's name and the file that holds it, for messages."""
  return f"{name} of {files[spelled]}" if spelled in files else name


def _missing(name, found, files):
  sources = sorted({str(path) for path in files.values()}) or ["the weights"]
  return UserError(
    f"{sources[0]} has no {name}; expected a whole BERT (it has: "
    f"{', '.join(list(found)[:3]) or 'nothing'}, {len(found)} tensors)"
  )


def _check_sizes(found, tensors, config, files):
  """Checks that the tensors reach every size of a config.

  Before anything is made of that size: a config may say anything.
  """
  layers = {
    int(match[1])
    for match in map(_LAYER_NAME.match, found)
    if match is not None
  }
  for layer in range(config.num_hidden_layers):
    if layer not in layers:
      raise _missing(_LAYER_BIAS.format(layer), found, files)
  for name, axis, field in _SIZES:
    size = getattr(config, field)
    if name not in found:
      raise _missing(name, found, files)
    shape = tensors[found[name]].shape
    if axis >= len(shape) or shape[axis] != size:
      expected = (*shape[:axis], size, *shape[axis + 1 :])
      raise UserError(
        f"{_where(name, found[name], files)} has shape {shape}; expected "
        f"{expected} from {hf.CONFIG_FILE} ({field})"
      )


def _is_tied_copy(name, tensor, found, tensors):
  """Tells whether a tensor repeats the one it is tied to."""
  original = found.get(_TIED.get(name))
  return original is not None and np.array_equal(tensor, tensors[original])


def has_own_decoder(tensors):
  """Tells whether the masked-LM head scores by weights of its own.

  Args:
    tensors: dict of name to numpy array.

  Returns:
    bool; False where the decoder is the word embeddings, or is not stored.
  """
  found = _modern_names(tensors, {})
  return any(
    name in found
    and not _is_tied_copy(name, tensors[found[name]], found, tensors)
    for name in _TIED
  )


def without_masked_lm_head(tensors):
  """Returns the tensors but for those of the masked-LM head."""
  spelled = _modern_names(tensors, {})
  head = {s for name, s in spelled.items() if name.startswith(_MASKED_LM_HEAD)}
  return {name: t for name, t in tensors.items() if name not in head}


def _from_tensor(path, config, tensor, abstract, where):
  """Returns a parameter of one of Hugging Face's tensors."""
  nothing = np.broadcast_to(np.float32(0), abstract.shape)
  expected = hf.convert(path, config, nothing)
  if tensor.shape != expected.shape:
    raise UserError(
      f"{where} has shape {tensor.shape}; expected {expected.shape} from "
      f"{hf.CONFIG_FILE}"
    )
  if not jnp.issubdtype(tensor.dtype, jnp.floating):
    raise UserError(
      f"{where} is of {tensor.dtype}; expected floating-point numbers (a "
      "quantised model can't be trained on)"
    )
  _, from_tensor = hf.layout(path)
  array = from_tensor(np.asarray(tensor, np.float32), abstract.shape)
  return np.ascontiguousarray(array)
