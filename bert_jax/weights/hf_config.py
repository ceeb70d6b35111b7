"""Reads the architecture of a foreign model; refuses what is no such BERT."""

import dataclasses

from bert_jax.data.json_text import shorten
from bert_jax.errors import UserError
from bert_jax.model.bert_config import BertConfig
from bert_jax.weights import hf
from bert_jax.weights.folder_files import get, load_json

# transformers' BertConfig has our defaults, and this one.
_DEFAULT_VOCAB_SIZE = 30522
_ACTIVATIONS = {
  "gelu": "gelu",
  "gelu_new": "gelu_new",
  "gelu_pytorch_tanh": "gelu_new",
}
# Settings of models that compute something else: the value that does not, and
# what another value means.
_PLAIN = {
  "model_type": ("bert", "another architecture"),
  "position_embedding_type": (
    "absolute",
    "its attention depends on distances, where BERT adds a learned vector to "
    "each position",
  ),
  "is_decoder": (False, "a decoder's token sees only what is before it"),
  "add_cross_attention": (False, "it attends to another sequence"),
  "quantization_config": (None, "its weights are not plain numbers"),
}
# What sets the peers apart, by their model_type.
_OTHER_MODELS = {
  "albert": "its layers share their weights and its embeddings are factored",
  "bert-generation": "a decoder, without token types",
  "bert_generation": "a decoder, without token types",
  "camembert": "RoBERTa's positions begin at 2 and its words are SentencePiece",
  "deberta": "its attention has relative positions",
  "deberta-v2": "its attention has relative positions",
  "distilbert": "it has no token types and no pooler",
  "electra": "a discriminator, its embeddings of another width",
  "modernbert": "rotary positions and gated feed-forward layers",
  "mpnet": "its attention has relative positions",
  "nomic_bert": "rotary positions and gated feed-forward layers",
  "roberta": "its positions begin at 2 and its words are byte-level BPE",
  "xlm-roberta": "RoBERTa's positions begin at 2, its words are SentencePiece",
}
_FRACTIONS = (
  "hidden_dropout_prob",
  "attention_probs_dropout_prob",
  "classifier_dropout",
)


def load_bert_config(path):
  """Reads a config.json or bert_config.json.

  Sizes are checked for being numbers only: how large they may be is what the
  tensors say (`hf.from_hf`).

  Args:
    path: `epath.Path`.

  Returns:
    `BertConfig`, its dtype float32. Keys that are not there have
    transformers' defaults.

  Raises:
    UserError: it can't be read, or the model is not a BERT of this kind.
  """
  saved = load_json(path)
  _check_architecture(saved, path)
  values = {"vocab_size": _DEFAULT_VOCAB_SIZE}
  values |= {key: saved[key] for key in hf.SHARED_FIELDS if key in saved}
  activation = values.get("hidden_act", "gelu")
  if not isinstance(activation, str) or activation not in _ACTIVATIONS:
    raise UserError(
      f"hidden_act is {shorten(activation)} in {path}; expected "
      f"{' or '.join(_ACTIVATIONS)}"
    )
  config = BertConfig(**values | {"hidden_act": _ACTIVATIONS[activation]})
  _check_numbers(config, path)
  return config


def _check_architecture(saved, path):
  for key, (plain, reason) in _PLAIN.items():
    value = saved.get(key)
    if value is None or value == plain:
      continue
    if key == "model_type" and isinstance(value, str):
      reason = _OTHER_MODELS.get(value, reason)
    raise UserError(
      f"{key} is {shorten(value)} in {path}: {reason}; expected {plain!r}"
    )
  own_code = saved.get("auto_map")
  if isinstance(own_code, dict) and any("Model" in key for key in own_code):
    raise UserError(
      f"{path} brings a model of its own code (auto_map); expected a BERT of "
      "transformers"
    )


def _check_numbers(config, path):
  for field in dataclasses.fields(config):
    name, value = field.name, getattr(config, field.name)
    if field.type is int:
      holds, expected = type(value) is int and value > 0, "a positive number"
    elif name in _FRACTIONS:
      holds = _is_number(value) and 0 <= value < 1
      holds = holds or (value is None and name == "classifier_dropout")
      expected = "0 <= p < 1"
    elif field.type is float:
      holds, expected = _is_number(value) and 0 < value < 1, "0 < value < 1"
    else:
      continue
    if not holds:
      raise UserError(
        f"{name} is {shorten(value)} in {path}; expected {expected}"
      )
  if config.hidden_size % config.num_attention_heads:
    raise UserError(
      f"hidden_size is {config.hidden_size} in {path}; expected a multiple of "
      f"num_attention_heads = {config.num_attention_heads}"
    )


def _is_number(value):
  return type(value) in (int, float)


def load_head_settings(path, num_labels):
  """Reads what config.json says of a fine-tuned model's output layer.

  Args:
    path: `epath.Path`.
    num_labels: outputs of the layer.

  Returns:
    (transformers' class or "?", its word for the loss or None, tuple of str:
    what each output stands for).

  Raises:
    UserError: a value is of another type, or two outputs have one name.
  """
  saved = load_json(path)
  architectures = get(saved, "architectures", list, [], path)
  architecture = architectures[0] if architectures else "?"
  names = get(saved, "id2label", dict, {}, path)
  labels = tuple(names.get(str(i), f"LABEL_{i}") for i in range(num_labels))
  if not all(isinstance(label, str) for label in (architecture, *labels)):
    raise UserError(
      f"architectures or id2label of {path} is not of names; expected text"
    )
  if len(set(labels)) < len(labels):
    raise UserError(
      f"id2label of {path} names two outputs alike; expected each once"
    )
  return architecture, get(saved, "problem_type", str, None, path), labels
