"""Reads a TensorFlow 1 checkpoint of the original BERT code.

A folder holds `bert_model.ckpt.index`, `bert_model.ckpt.data-*`,
`bert_config.json` and `vocab.txt`. The tensors get Hugging Face's names, so
that one table (`hf.py`) checks and shapes everything that comes from outside.
"""

import re

from bert_jax.data.pipeline import import_tensorflow
from bert_jax.errors import UserError
from bert_jax.storage import paths
from bert_jax.weights import hf

CONFIG_FILE = "bert_config.json"
# Variables of the optimizer, which are left out.
_OPTIMIZER = re.compile(r".*/adam_[mv]|.*/lamb_[mv]|global_step")


def find_prefix(source):
  """Finds a checkpoint.

  Args:
    source: `epath.Path` of a folder, or of a checkpoint without its endings.

  Returns:
    `epath.Path` that the endings follow, or None where there is none.

  Raises:
    UserError: a folder holds several.
  """
  if (source.parent / f"{source.name}.index").exists():
    return source
  if not source.is_dir():
    return None
  names = sorted(path.name for path in source.glob("*.index"))
  if len(names) > 1:
    raise UserError(
      f"{source} holds {len(names)} checkpoints; expected one of them, such as "
      f"{source / names[-1].removesuffix('.index')}"
    )
  return source / names[0].removesuffix(".index") if names else None


def load_tensors(prefix):
  """Reads the model's tensors, without the optimizer's.

  Args:
    prefix: `epath.Path`, as from `find_prefix`.

  Returns:
    dict of Hugging Face's names to numpy arrays in Hugging Face's layout.

  Raises:
    UserError: TensorFlow is not installed, or the checkpoint is broken or not
      on a disk.
  """
  try:
    tf = import_tensorflow()
  except ModuleNotFoundError:
    raise UserError(
      f"{prefix} is a TensorFlow checkpoint and TensorFlow is not installed; "
      "expected it (pip install tensorflow-cpu)"
    ) from None
  if paths.is_remote(prefix):
    raise UserError(
      f"{prefix} is a TensorFlow checkpoint; expected it on a disk (copy it)"
    )
  try:
    reader = tf.train.load_checkpoint(str(prefix))
    names = sorted(reader.get_variable_to_shape_map())
    kept = [name for name in names if not _OPTIMIZER.fullmatch(name)]
    return dict(_to_hf(name, reader.get_tensor(name)) for name in kept)
  except Exception as e:  # whatever a damaged file makes the reader raise
    reason = " ".join(str(e).split())[:200]
    raise UserError(
      f"{prefix} can't be read: {reason} (expected whole .index and .data "
      "files)"
    ) from None


def _to_hf(name, tensor):
  """Returns (Hugging Face's name, tensor in torch's layout)."""
  path = re.sub(r"/output_weights$", "/kernel", name)
  path = re.sub(r"/output_bias$", "/bias", path)
  # Kernels are [in, out] but for the next-sentence head's.
  if name.endswith("/kernel"):
    tensor = tensor.T
  return hf.hf_name(path), tensor


def guess_lowercase(folder, vocab):
  """Guesses whether text is lower-cased: no file of the kind says so.

  Args:
    folder: `epath.Path`; names such as uncased_L-12_H-768_A-12 tell.
    vocab: list of tokens.

  Returns:
    (bool, where the guess is from).
  """
  match = re.search(r"(un)?cased", paths.absolute(folder).name.lower())
  if match:
    return match[0] == "uncased", f"the folder is named {match[0]}"
  # "[PAD]" and its like have capitals everywhere.
  cased = any(token != token.lower() for token in vocab if token[:1] != "[")
  having = "has" if cased else "has no"
  return not cased, f"the vocabulary {having} capital letters"
