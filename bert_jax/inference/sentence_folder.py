"""How a folder of sentence-transformers makes one vector of a text."""

import dataclasses
import json

from bert_jax.errors import UserError
from bert_jax.model.pooling import POOLINGS
from bert_jax.storage.paths import as_path

_MODULES_FILE = "modules.json"
# Spellings of a pooling: before version 5 of sentence-transformers a flag each.
_FLAGS = {
  "pooling_mode_cls_token": "cls",
  "pooling_mode_mean_tokens": "mean",
}


@dataclasses.dataclass(frozen=True)
class SentenceFolder:
  """What a folder says beside its BERT.

  Attributes:
    pooling: one of `POOLINGS`.
    max_length: where texts are cut, in tokens; None where nothing is said.
    normalize: whether vectors are scaled to length 1.
  """

  pooling: str
  max_length: int | None
  normalize: bool


def load_sentence_folder(folder):
  """Reads how a folder pools.

  Args:
    folder: str or path.

  Returns:
    `SentenceFolder`, or None if it is no folder of sentence-transformers.

  Raises:
    UserError: it does something else with the tokens' vectors.
  """
  folder = as_path(folder)
  if not (folder / _MODULES_FILE).exists():
    return None
  modules = _load(folder / _MODULES_FILE)
  pooling, normalize = None, False
  for module in modules:
    kind = module["type"].split(".")[-1]
    if kind == "Pooling":
      pooling = _pooling(folder / module["path"] / "config.json")
    elif kind == "Normalize":
      normalize = True
    elif kind != "Transformer":
      raise UserError(
        f"{folder / _MODULES_FILE} has a module {module['type']}; expected "
        "Transformer, Pooling and Normalize (set --pooling to embed without)"
      )
  if pooling is None:
    raise UserError(
      f"{folder / _MODULES_FILE} has no Pooling; expected one (set --pooling)"
    )
  settings = folder / "sentence_bert_config.json"
  saved = _load(settings) if settings.exists() else {}
  return SentenceFolder(pooling, saved.get("max_seq_length"), normalize)


def _pooling(path):
  saved = _load(path)
  chosen = saved.get("pooling_mode")
  if chosen is None:
    flags = [key for key, value in saved.items() if value is True]
    flags = [key for key in flags if key.startswith("pooling_mode_")]
    chosen = "+".join(_FLAGS.get(key, key) for key in flags)
  if chosen not in POOLINGS:
    raise UserError(
      f"{path} pools by {chosen!r}; expected {' or '.join(POOLINGS)} (set "
      "--pooling to embed in another way)"
    )
  return chosen


def _load(path):
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as e:
    raise UserError(
      f"{path} can't be read: {' '.join(str(e).split())}; expected JSON"
    ) from None
