"""Reads what a sentence-transformers folder does around its encoder."""

import dataclasses

from bert_jax.data.json_text import shorten
from bert_jax.errors import UserError
from bert_jax.model.pooling import POOLINGS
from bert_jax.weights.folder_files import get, load_json, load_json_if_any

MODULES_FILE = "modules.json"
# More is told and left out.
_KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")
# How folders of earlier versions spell the pooling.
_OLD_POOLINGS = {
  "pooling_mode_mean_tokens": "mean",
  "pooling_mode_cls_token": "cls",
}


@dataclasses.dataclass(frozen=True)
class SentenceModules:
  """The modules of a folder.

  Attributes:
    encoder: `epath.Path` of the BERT.
    pooling: one of `POOLINGS`, or None where vectors are made in another way.
    problem: how they are made then; "" elsewhere.
    normalizes: whether vectors are divided by their length.
    max_length: longest sequence in tokens, or None where nothing is said.
    notes: lines on what is left out.
  """

  encoder: object
  pooling: str | None
  problem: str
  normalizes: bool
  max_length: int | None
  notes: tuple[str, ...]


def load_modules(folder):
  """Reads modules.json and the settings of the modules.

  Args:
    folder: `epath.Path`.

  Returns:
    `SentenceModules`, or None where the folder has no modules.json.

  Raises:
    UserError: a file can't be read, or there is no encoder among the modules.
  """
  path = folder / MODULES_FILE
  if not path.exists():
    return None
  modules = [_module(folder, m, path) for m in load_json(path, list)]
  kinds = [kind for kind, _ in modules]
  if "Transformer" not in kinds:
    raise UserError(
      f"{path} lists {', '.join(kinds) or 'nothing'}; expected a Transformer"
    )
  encoder = modules[kinds.index("Transformer")][1]
  settings_path = encoder / "sentence_bert_config.json"
  settings = load_json_if_any(settings_path)
  more = [kind for kind in kinds if kind not in _KNOWN_MODULES]
  if "Pooling" in kinds and not more:
    pooling_path = modules[kinds.index("Pooling")][1] / "config.json"
    pooling, problem = _load_pooling(pooling_path)
  else:
    pooling = None
    problem = f"{path} makes vectors by {', '.join(kinds[1:]) or 'nothing'}"
  notes = []
  if problem:
    notes.append(f"{problem}, which is left out: only its BERT is taken")
  if get(settings, "do_lower_case", bool, False, settings_path):
    notes.append(f"{settings_path} lower-cases text, which is left out")
  max_length = get(settings, "max_seq_length", int, None, settings_path)
  if max_length is not None and max_length < 3:
    raise UserError(
      f"max_seq_length is {max_length} in {settings_path}; expected 3 or more"
    )
  return SentenceModules(
    encoder=encoder,
    pooling=pooling,
    problem=problem,
    normalizes="Normalize" in kinds,
    max_length=max_length,
    notes=tuple(notes),
  )


def _module(folder, module, path):
  """Returns the (kind, folder) of an entry of modules.json."""
  if not isinstance(module, dict):
    raise UserError(f"{path} lists {shorten(module)}; expected objects")
  kind = get(module, "type", str, "", path).rpartition(".")[2]
  place = get(module, "path", str, "", path)
  if "/" in place or place in (".", "..") or "\0" in place:
    raise UserError(
      f"{path} lists a folder {shorten(place)}; expected one within {folder}"
    )
  return kind, folder / place if place else folder


def _load_pooling(path):
  """Returns (one of `POOLINGS` or None, what it is if it is none of them)."""
  values = load_json(path)
  chosen = get(values, "pooling_mode", (str, list), None, path)
  if chosen is None:
    flags = [key for key, value in values.items() if value is True]
    flags = [key for key in flags if key.startswith("pooling_mode_")]
    chosen = [_OLD_POOLINGS.get(flag, flag) for flag in flags]
  if isinstance(chosen, list) and all(isinstance(c, str) for c in chosen):
    chosen = "+".join(chosen)
  if chosen not in POOLINGS:
    return None, f"{path} pools by {shorten(chosen)}"
  return chosen, ""
