"""Weights and folders in Hugging Face's form, without torch or transformers.

Our parameter names are Hugging Face's but for the spelling; `_LAYOUTS` says
how the arrays differ. Both directions read that one table: folders are written
here, and `hf_import.py` makes parameters of tensors that `hf_folder.py` reads.
"""

import dataclasses
import json
import re

import flax.traverse_util
import numpy as np
import safetensors.numpy

from bert_jax.data.tokenization import create_tokenizer
from bert_jax.errors import UserError
from bert_jax.model.bert_config import BertConfig
from bert_jax.storage import paths

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"

# Export -> (class that it is for, parameters left out). transformers 5 warns of
# tensors that a class does not have, or does not find.
HEADS = {
  "pretraining": ("BertForPreTraining", ()),
  "mlm": ("BertForMaskedLM", ("bert/pooler", "cls/seq_relationship")),
  "encoder": ("BertModel", ("cls",)),
}
# The same for fine-tuned models.
TASK_HEADS = {
  "sequence-classification": ("BertForSequenceClassification", ()),
  "token-classification": ("BertForTokenClassification", ()),
  "question-answering": ("BertForQuestionAnswering", ()),
}
_ALL_HEADS = HEADS | TASK_HEADS

# (path of a parameter; function of our array and the vocabulary's size to
# Hugging Face's; function of that and our shape to ours). The first path that
# matches counts.
_LAYOUTS = (
  # [V, ...]: the padding of the vocabulary stays here.
  (
    r"bert/embeddings/word_embeddings|cls/predictions/bias",
    lambda x, vocab_size: x[:vocab_size],
    lambda x, shape: np.pad(
      x, [(0, to - size) for size, to in zip(x.shape, shape, strict=True)]
    ),
  ),
  # [in, out] to torch's [out, in].
  (r".*/kernel", lambda x, _: x.T, lambda x, _: x.T),
  (r".*", lambda x, _: x, lambda x, _: x),
)

# Hugging Face's "dtype" is that of the file, ours that of the arithmetic; how
# gradients are computed is not the model's.
_OWN_FIELDS = ("dtype", "remat")
SHARED_FIELDS = tuple(
  field.name
  for field in dataclasses.fields(BertConfig)
  if field.name not in _OWN_FIELDS
)

# Further files that an export of a run may hold.
EXTRA_FILES = ("curve.png", "metrics.jsonl", "optimizer.safetensors")
_ADDED_TOKEN_KEYS = (
  *("content", "single_word", "lstrip", "rstrip", "normalized", "special"),
)
_SPECIAL_TOKENS_MAP = {
  "cls_token": "[CLS]",
  "mask_token": "[MASK]",
  "pad_token": "[PAD]",
  "sep_token": "[SEP]",
  "unk_token": "[UNK]",
}


def to_hf(params, config, heads):
  """Converts parameters to Hugging Face's tensors.

  Args:
    params: parameters of `BertForPreTraining`, or of a fine-tuned model.
    config: `BertConfig`.
    heads: which model they are for, a key of `HEADS` or `TASK_HEADS`.

  Returns:
    dict of name to contiguous float32 numpy array; the padding of the
    vocabulary is cut off. Tied tensors are left out, as transformers does.
  """
  _, excluded = _ALL_HEADS[heads]
  tensors = {}
  for path, array in flatten(params).items():
    if path.startswith(excluded):
      continue
    name = hf_name(path)
    if heads == "encoder":
      name = name.removeprefix("bert.")
    tensor = convert(path, config, np.asarray(array, np.float32))
    # safetensors writes the wrong numbers for a transposed view.
    tensors[name] = np.ascontiguousarray(tensor)
  return tensors


def save_pretrained(
  output_dir,
  params,
  config,
  vocab,
  *,
  lowercase,
  heads,
  model_card,
  max_length,
  strip_accents=None,
  added_tokens=(),
  settings=None,
  extra_files=None,
):
  """Writes a folder that `from_pretrained` of transformers loads.

  The folder is written beside its place and moved there when it is complete.

  Args:
    output_dir: path; replaced if it holds an earlier export.
    params: parameters of `BertForPreTraining`, or of a fine-tuned model.
    config: `BertConfig`.
    vocab: list of str, the tokens in the order of their ids.
    lowercase: whether the tokenizer lower-cases.
    heads: a key of `HEADS` or `TASK_HEADS`.
    model_card: text of README.md.
    max_length: longest sequence the tokenizer lets through, in tokens.
    strip_accents: whether it strips accents; None does so in lower-cased text
      only.
    added_tokens: `tokenizers.AddedToken`s that it finds in text.
    settings: dict of what config.json says besides, such as id2label.
    extra_files: dict of name, such as "1_Pooling/config.json", to its content:
      bytes, or an object that the file holds as JSON.

  Raises:
    UserError: the vocabulary and the model differ in size, or `output_dir`
      holds files that are not an export's.
  """
  if len(vocab) != config.vocab_size:
    raise UserError(
      f"the vocabulary has {len(vocab)} tokens; the model was trained with "
      f"{config.vocab_size}"
    )
  tensors = to_hf(params, config, heads)
  tokenizer = create_tokenizer(vocab, lowercase, strip_accents)
  tokenizer.add_tokens(list(added_tokens))
  tokenizer.enable_truncation(max_length)
  files = {
    CONFIG_FILE: _to_json(_hf_config(config, heads, vocab) | (settings or {})),
    "vocab.txt": "".join(token + "\n" for token in vocab),
    "tokenizer.json": tokenizer.to_str(pretty=True),
    "tokenizer_config.json": _to_json(
      _tokenizer_config(tokenizer, max_length, added_tokens)
    ),
    "special_tokens_map.json": _to_json(_SPECIAL_TOKENS_MAP),
    "README.md": model_card,
  }
  for name, value in (extra_files or {}).items():
    files[name] = value if isinstance(value, bytes) else _to_json(value)
  output_dir = paths.as_path(output_dir)
  names = {name.split("/")[0] for name in files}
  check_replaceable(output_dir, {*names, *EXTRA_FILES, WEIGHTS_FILE})
  files[WEIGHTS_FILE] = safetensors.numpy.save(tensors, {"format": "pt"})
  with paths.replaced_folder(output_dir, CONFIG_FILE) as folder:
    for name, content in files.items():
      paths.write_file(folder / name, content)


def flatten(params):
  """Returns {"bert/pooler/dense/bias": array, ...} of nested parameters."""
  return flax.traverse_util.flatten_dict(params, sep="/")


def hf_name(path):
  """Spells a parameter's path, such as "bert/pooler/dense/bias", their way."""
  path = re.sub(r"/layer_(\d+)/", r"/layer/\1/", path)
  path = re.sub(r"/(kernel|scale)$", "/weight", path)
  path = re.sub(r"_embeddings$", "_embeddings/weight", path)
  return path.replace("/", ".")


def layout(path):
  """Returns the two conversions of the first row that matches a path."""
  return next(
    (to_tensor, from_tensor)
    for pattern, to_tensor, from_tensor in _LAYOUTS
    if re.fullmatch(pattern, path)
  )


def convert(path, config, array):
  """Returns a parameter in Hugging Face's layout."""
  to_tensor, _ = layout(path)
  return to_tensor(array, config.vocab_size)


def _hf_config(config, heads, vocab):
  architecture, _ = _ALL_HEADS[heads]
  return {
    "architectures": [architecture],
    "model_type": "bert",
    **{name: getattr(config, name) for name in SHARED_FIELDS},
    "dtype": "float32",
    "pad_token_id": vocab.index("[PAD]"),
    "tie_word_embeddings": True,
  }


def _tokenizer_config(tokenizer, max_length, added_tokens):
  normalizer = tokenizer.normalizer
  config = {
    "tokenizer_class": "BertTokenizer",
    "do_lower_case": normalizer.lowercase,
    "strip_accents": normalizer.strip_accents,
    "tokenize_chinese_chars": True,
    "model_max_length": max_length,
    **_SPECIAL_TOKENS_MAP,
  }
  if added_tokens:
    config["added_tokens_decoder"] = {
      str(number): {key: getattr(token, key) for key in _ADDED_TOKEN_KEYS}
      for number, token in tokenizer.get_added_tokens_decoder().items()
    }
  return config


def _to_json(value):
  return json.dumps(value, indent=2, sort_keys=True) + "\n"


def check_replaceable(output_dir, file_names):
  """Raises UserError if replacing a folder would lose something else.

  Args:
    output_dir: `epath.Path`.
    file_names: set of the names that an export has.
  """
  if not output_dir.exists():
    return
  if not output_dir.is_dir():
    raise UserError(f"{output_dir} is a file; expected a folder to write to")
  others = {path.name for path in output_dir.iterdir()} - file_names
  if others:
    raise UserError(
      f"{output_dir} holds {min(others)}, which no export wrote; "
      "expected a new folder, an empty one, or an earlier export"
    )
