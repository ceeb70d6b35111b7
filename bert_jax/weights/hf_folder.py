"""Reads a Hugging Face folder of any BERT: config, tensors, vocabulary.

Whoever wrote it: with or without the pretraining heads, in one file or in
shards, by transformers of any year. `hf.py` gives the tensors our names.
"""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import safetensors

from bert_jax.data.tokenization import SPECIAL_TOKENS
from bert_jax.errors import UserError
from bert_jax.model.bert_config import BertConfig
from bert_jax.weights import hf
from bert_jax.weights.torch_file import load_torch_tensors

# transformers' BertConfig has our defaults, and this one.
_DEFAULT_VOCAB_SIZE = 30522
_ACTIVATIONS = {
  "gelu": "gelu",
  "gelu_new": "gelu_new",
  "gelu_pytorch_tanh": "gelu_new",
}
# Settings of variants that compute something else, and the value that does
# not.
_PLAIN = {
  "model_type": "bert",
  "position_embedding_type": "absolute",
  "is_decoder": False,
  "add_cross_attention": False,
}
_SAFETENSORS_DTYPES = {
  "BF16": jnp.bfloat16,
  "F16": np.float16,
  "F32": np.float32,
  "F64": np.float64,
  "I32": np.int32,
  "I64": np.int64,
}


@dataclasses.dataclass(frozen=True)
class Tokenization:
  """What turns text to ids in a folder.

  Attributes:
    vocab: list of str, one for each row of the embeddings; None if the folder
      has no vocabulary.
    lowercase: whether it lower-cases and strips accents, or None where
      nothing is said.
    max_length: longest sequence in tokens, or None where nothing is said.
    notes: lines on what our tokenizer does in another way.
  """

  vocab: list[str] | None
  lowercase: bool | None
  max_length: int | None
  notes: tuple[str, ...]


def load_bert_config(path):
  """Reads a config.json or bert_config.json.

  Args:
    path: `epath.Path`.

  Returns:
    `BertConfig`, its dtype float32. Keys that are not there have
    transformers' defaults.

  Raises:
    UserError: it can't be read, or the model is not a BERT of this kind.
  """
  saved = _load_json(path)
  for key, plain in _PLAIN.items():
    if saved.get(key, plain) != plain:
      raise UserError(f"{key} is {saved[key]!r} in {path}; expected {plain!r}")
  values = {"vocab_size": _DEFAULT_VOCAB_SIZE}
  values |= {key: saved[key] for key in hf.SHARED_FIELDS if key in saved}
  activation = values.get("hidden_act", "gelu")
  if activation not in _ACTIVATIONS:
    raise UserError(
      f"hidden_act is {activation!r} in {path}; expected "
      f"{' or '.join(_ACTIVATIONS)}"
    )
  config = BertConfig(**values | {"hidden_act": _ACTIVATIONS[activation]})
  _check_numbers(config, path)
  return config


def _check_numbers(config, path):
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if field.type is int and not (type(value) is int and value > 0):
      raise UserError(
        f"{field.name} is {value!r} in {path}; expected a positive number"
      )
    if field.type is float and type(value) not in (int, float):
      raise UserError(f"{field.name} is {value!r} in {path}; expected a number")
  if config.hidden_size % config.num_attention_heads:
    raise UserError(
      f"hidden_size is {config.hidden_size} in {path}; expected a multiple of "
      f"num_attention_heads = {config.num_attention_heads}"
    )


def load_tensors(folder):
  """Reads the weights, in whichever file they are.

  Args:
    folder: `epath.Path`.

  Returns:
    dict of name to numpy array, in the dtype of the file.

  Raises:
    UserError: there are none, a file is broken or a shard is missing.
  """
  readers = {
    hf.WEIGHTS_FILE: _load_safetensors,
    "pytorch_model.bin": load_torch_tensors,
  }
  for name, read in readers.items():
    if (folder / name).exists():
      return read(folder / name)
    index = folder / f"{name}.index.json"
    if index.exists():
      return _load_shards(index, read)
  raise UserError(
    f"{folder} has no weights; expected {' or '.join(readers)}, or their shards"
  )


def _load_shards(index, read):
  weight_map = _load_json(index).get("weight_map", {})
  tensors = {}
  for name in sorted(set(weight_map.values())):
    path = index.parent / name
    if not path.exists():
      raise UserError(f"{path} is missing; {index.name} lists it")
    tensors |= read(path)
  missing = sorted(weight_map.keys() - tensors.keys())
  if missing:
    raise UserError(f"no shard holds {missing[0]}, which {index} lists")
  return tensors


def _load_safetensors(path):
  try:
    found = safetensors.deserialize(path.read_bytes())
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


def load_tokenization(folder, vocab_size):
  """Reads the vocabulary and how text is to be written for it.

  Args:
    folder: `epath.Path`.
    vocab_size: rows of the embedding table.

  Returns:
    `Tokenization`.

  Raises:
    UserError: a file can't be read, the tokenizer is no WordPiece, or its
      tokens do not fit into the table.
  """
  settings, saved = (
    _load_json(folder / name) if (folder / name).exists() else {}
    for name in ("tokenizer_config.json", "tokenizer.json")
  )
  normalizer = saved.get("normalizer") or {}
  lowercase = settings.get("do_lower_case")
  # As in transformers: BertTokenizer never asks tokenizer.json.
  if settings.get("tokenizer_class") == "PreTrainedTokenizerFast":
    lowercase = normalizer.get("lowercase", lowercase)
  notes = []
  accents = settings.get("strip_accents", normalizer.get("strip_accents"))
  if accents not in (None, lowercase is not False):
    notes.append(
      f"its tokenizer has strip_accents={accents}; here accents are stripped "
      "from lower-cased text and only there"
    )
  if settings.get("tokenize_chinese_chars", True) is not True:
    notes.append(
      "its tokenizer joins Chinese characters; here they stand apart"
    )
  added = [token["content"] for token in saved.get("added_tokens", ())]
  if more := [token for token in added if token not in SPECIAL_TOKENS]:
    notes.append(
      f"its tokenizer finds {len(more)} added tokens in text, such as "
      f"{more[0]!r}; here they are read as words"
    )
  max_length = settings.get("model_max_length")
  return Tokenization(
    vocab=_load_vocab(folder, saved, vocab_size),
    lowercase=lowercase,
    # A huge number is transformers' way to say nothing.
    max_length=max_length if max_length and max_length < 1e9 else None,
    notes=tuple(notes),
  )


def _load_vocab(folder, saved, vocab_size):
  """Returns the tokens in the order of their ids, or None without any."""
  if (folder / "vocab.txt").exists():
    text = (folder / "vocab.txt").read_text(encoding="utf-8")
    lines = text.removesuffix("\n").split("\n")
    ids = {line.rstrip("\r"): i for i, line in enumerate(lines)}
  elif saved:
    model = saved.get("model", {})
    if model.get("type", "WordPiece") != "WordPiece":
      raise UserError(
        f"{folder / 'tokenizer.json'} is a {model['type']} tokenizer; expected "
        "WordPiece"
      )
    ids = dict(model.get("vocab", {}))
  else:
    return None
  for token in saved.get("added_tokens", ()):
    ids.setdefault(token["content"], token["id"])
  return name_rows(ids, vocab_size, folder)


def name_rows(ids, vocab_size, source):
  """Names every row of an embedding table.

  More rows than tokens are usual: sizes are rounded up.

  Args:
    ids: dict of token to row.
    vocab_size: number of rows.
    source: where the vocabulary is from, for messages.

  Returns:
    list of `vocab_size` str; a row without a token has a name that no text
    contains, since the tokenizer cuts at brackets.

  Raises:
    UserError: a token has no row, or a special token is missing.
  """
  missing = [token for token in SPECIAL_TOKENS if token not in ids]
  if missing:
    raise UserError(
      f"the vocabulary of {source} lacks {', '.join(missing)}; expected a "
      "WordPiece vocabulary"
    )
  if max(ids.values()) >= vocab_size:
    raise UserError(
      f"the vocabulary of {source} has {max(ids.values()) + 1} tokens; "
      f"expected at most {vocab_size}, the rows of the embedding table"
    )
  vocab = [f"[row {i}]" for i in range(vocab_size)]
  for token, i in ids.items():
    vocab[i] = token
  return vocab


def _load_json(path):
  """Returns the object of a JSON file."""
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as e:
    raise UserError(
      f"{path} can't be read: {' '.join(str(e).split())}"
    ) from None
  if not isinstance(value, dict):
    raise UserError(f"{path} is a {type(value).__name__}; expected an object")
  return value
