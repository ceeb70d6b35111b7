"""Weights to start from: a run of ours, or a BERT from elsewhere.

`load_init` is what every `--init` goes through. It reads

  a workdir of `bert_jax.train`
  a Hugging Face folder of any model with BERT's architecture
  a workdir of `bert_jax.finetune`, whose best model is such a folder
  a TensorFlow 1 checkpoint of the original code

and returns all of them in one form, `Pretrained`. Parameters that a model needs
and the source does not hold keep their fresh weights (`take_over`), which
`print_report` tells the user.
"""

import dataclasses

import flax.traverse_util
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bert_jax.config import active_phases, phase_of_step
from bert_jax.data.tokenization import create_tokenizer
from bert_jax.data.vocabulary import load_vocabulary
from bert_jax.errors import UserError
from bert_jax.model.bert import (
  BertConfig,
  count_params,
  create_bert_config,
  create_params,
)
from bert_jax.sharding import partitioning
from bert_jax.storage import files, paths
from bert_jax.storage import workdir as workdir_lib
from bert_jax.storage.access import one_line_errors
from bert_jax.weights import hf, hf_folder, hf_import, tf_checkpoint
from bert_jax.weights.folder_files import get, load_json
from bert_jax.weights.hf_config import load_bert_config
from bert_jax.weights.hf_tokenizer import load_tokenization
from bert_jax.weights.sentence_folder import SentenceModules, load_modules

# Where a workdir of fine-tuning has its best model, a Hugging Face folder.
MODEL_DIR = "model"
# What a workdir of pretraining keeps of the model that it was begun with.
RECORD_FILE = "init.json"


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A model to start from.

  Attributes:
    source: what `--init` said.
    bert_config: `BertConfig`; `vocab_size` is that of the embedding table and
      dtype is float32, the caller's to replace.
    params: nested dict of float32 numpy arrays, named and shaped as those of
      `BertForPreTraining`. "bert" has embeddings and encoder; pooler and
      heads ("cls") are there if the source holds them.
    vocab: list of `vocab_size` str, or None where the source has none.
    lowercase: whether the tokenizer lower-cases.
    max_length: longest sequence, in tokens.
    strip_accents: whether it strips accents; None does so in lower-cased text
      only.
    added_tokens: tuple of `tokenizers.AddedToken`, tokens of the vocabulary
      that are found in text as they stand.
    modules: `SentenceModules`, how a sentence-transformers folder makes a
      vector of a text, or None.
    unused: names of the tensors that are not used, as the source spells them.
    notes: lines on what was guessed, for the user.
  """

  source: str
  bert_config: BertConfig
  params: dict
  vocab: list[str] | None
  lowercase: bool
  max_length: int
  strip_accents: bool | None = None
  added_tokens: tuple = ()
  modules: SentenceModules | None = None
  unused: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()

  def create_tokenizer(self):
    """Builds the tokenizer that gives the source's ids.

    Returns:
      `tokenizers.Tokenizer`, see `tokenization.create_tokenizer`.

    Raises:
      UserError: the source has no vocabulary.
    """
    if self.vocab is None:
      raise UserError(f"{self.source} has no vocabulary; expected a vocab.txt")
    tokenizer = create_tokenizer(self.vocab, self.lowercase, self.strip_accents)
    tokenizer.add_tokens(list(self.added_tokens))
    return tokenizer

  def check_pairs(self):
    """Raises UserError where the model can't tell two texts of a pair apart."""
    if self.bert_config.type_vocab_size < 2:
      raise UserError(
        f"{self.source} has one token type (type_vocab_size 1); expected two, "
        "for the texts of a pair"
      )


def load_init(source, step=None):
  """Reads a pretrained model, wherever it comes from.

  Args:
    source: str or path: a workdir of training or fine-tuning, a Hugging Face
      folder, or the folder or prefix of a TensorFlow 1 checkpoint.
    step: int or "best", the checkpoint of a workdir; the newest by default.

  Returns:
    `Pretrained`.

  Raises:
    UserError: nothing of the kind is there, it is broken, or it is no BERT.
  """
  path = _check_name(source)
  with one_line_errors(path):
    if (path / MODEL_DIR / hf.CONFIG_FILE).exists():
      path = path / MODEL_DIR
    is_workdir = (path / "checkpoints").is_dir()
  if step is not None and not is_workdir:
    raise UserError(
      f"--step={step} was given for {source}; expected it with a workdir only"
    )
  if is_workdir:
    return _load_workdir(path, step)
  modules = load_modules(path)
  if modules is not None:
    return _with_modules(_load_hf_folder(modules.encoder), modules)
  if (path / hf.CONFIG_FILE).exists():
    return _load_hf_folder(path)
  prefix = tf_checkpoint.find_prefix(path)
  if prefix is not None:
    return _load_tf_checkpoint(prefix)
  raise UserError(
    f"--init={source} holds no model; expected a workdir of bert_jax.train "
    f"(with checkpoints/), a Hugging Face folder (with {hf.CONFIG_FILE}) or a "
    "TensorFlow checkpoint (with bert_model.ckpt.index)"
  )


def _check_name(source):
  """Returns the path of a source; raises UserError if nothing can print it."""
  try:
    str(source).encode()
    path = paths.as_path(source)
    if not paths.is_remote(source):  # what a bucket says is told elsewhere
      path.exists()
  except UnicodeEncodeError:
    raise UserError(
      f"--init={source!a} is not UTF-8; expected a name that is"
    ) from None
  except (OSError, ValueError) as e:  # too long, or with a null byte
    raise UserError(
      f"--init={source!a} can't be looked for: "
      f"{getattr(e, 'strerror', None) or e}"
    ) from None
  return path


def _with_modules(found, modules):
  """Returns a `Pretrained` that makes vectors as `SentenceModules` say."""
  return dataclasses.replace(
    found,
    max_length=min(found.max_length, modules.max_length or found.max_length),
    modules=modules,
    notes=(*found.notes, *modules.notes),
  )


def take_over(params, pretrained):
  """Replaces fresh weights by pretrained ones of the same name.

  Args:
    params: nested dict of jax arrays, on any mesh: a model's fresh weights; or
      of shapes with shardings, where the source holds all of them.
    pretrained: `Pretrained`.

  Returns:
    params: nested dict of jax arrays, sharded as before.
    fresh: tuple of paths, such as "bert/pooler/dense/bias", that keep their
      fresh weights.

  Raises:
    UserError: a shape differs.
  """
  found = flax.traverse_util.flatten_dict(pretrained.params, sep="/")
  taken, fresh = {}, []
  for path, leaf in flax.traverse_util.flatten_dict(params, sep="/").items():
    array = found.get(path)
    if array is None:
      fresh.append(path)
      taken[path] = leaf
      continue
    if array.shape != leaf.shape:
      raise UserError(
        f"{path} has shape {array.shape} in {pretrained.source}; expected "
        f"{leaf.shape}"
      )
    taken[path] = jax.make_array_from_callback(
      leaf.shape, leaf.sharding, array.__getitem__
    )
  return flax.traverse_util.unflatten_dict(taken, sep="/"), tuple(fresh)


def print_report(pretrained, fresh):
  """Tells what was loaded, what starts fresh and what was passed over.

  Args:
    pretrained: `Pretrained`.
    fresh: paths, as from `take_over`.
  """
  config = pretrained.bert_config
  leaves = jax.tree.leaves(pretrained.params)
  print(
    f"init: {pretrained.source}: {len(leaves)} tensors, "
    f"{count_params(pretrained.params, config):,} parameters; "
    f"{config.num_hidden_layers} layers of {config.hidden_size}, "
    f"{config.vocab_size:,} tokens, "
    f"{'lower-cased' if pretrained.lowercase else 'cased'}"
  )
  for label, names in (
    ("fresh weights for", fresh),
    ("passed over", pretrained.unused),
  ):
    if names:
      print(f"init: {label} {_group(names)}")
  for note in pretrained.notes:
    print(f"init: {note}")


def _group(names):
  """Returns the first two parts of the names, each with its count."""
  groups = {}
  for name in names:
    group = ".".join(name.replace("/", ".").split(".")[:-1][:2])
    groups[group] = groups.get(group, 0) + 1
  return ", ".join(f"{group} ({count})" for group, count in groups.items())


def load_run_params(workdir, bert_config, step=None):
  """Reads the parameters of a checkpoint, each process by itself.

  Args:
    workdir: `epath.Path` of a run.
    bert_config: `BertConfig` of its model.
    step: int, or "best"; the newest checkpoint by default.

  Returns:
    (step, nested dict of numpy arrays).

  Raises:
    UserError: no such checkpoint.
  """
  # orbax takes a second to import, and most sources are no checkpoints.
  from bert_jax.storage import checkpoints

  whole = NamedSharding(Mesh(jax.local_devices(), "all"), PartitionSpec())
  shapes = jax.eval_shape(lambda: create_params(bert_config, jax.random.key(0)))
  abstract = partitioning.abstract_arrays(
    shapes, jax.tree.map(lambda _: whole, shapes)
  )
  step, params, _ = checkpoints.load_params(workdir, abstract, step)
  return step, jax.tree.map(np.asarray, params)


def _load_workdir(workdir, step):
  config = workdir_lib.load_config(workdir)
  vocab = load_vocabulary(workdir / "vocab.txt")
  bert_config = dataclasses.replace(
    create_bert_config(config, len(vocab)), dtype="float32"
  )
  step, params = load_run_params(workdir, bert_config, step)
  return Pretrained(
    source=str(workdir),
    bert_config=bert_config,
    params=params,
    vocab=vocab,
    lowercase=config.corpus.lowercase,
    max_length=trained_length(config, workdir, step),
    strip_accents=config.corpus.get("strip_accents"),
    notes=(f"checkpoint {step:,}",),
  )


def trained_length(config, workdir, step):
  """Returns the longest length that a checkpoint's positions were trained at.

  Args:
    config: the run's settings.
    workdir: `epath.Path` of the run.
    step: int, of the checkpoint.

  Raises:
    UserError: init.json is damaged.
  """
  phases = active_phases(config)
  reached = phases[: phases.index(phase_of_step(config, step)) + 1]
  lengths = [config[name].max_seq_length for name in reached]
  positions = config.model.max_position_embeddings
  path = workdir / RECORD_FILE
  if path.exists():
    begun = files.load_json(path, "export without it")
    init = begun.get("init", {})
    # Older versions did not say, and took all positions for trained.
    is_whole = init.get("source") and not init.get("extend_positions")
    lengths.append(begun.get("max_length", positions if is_whole else 0))
  return min(max(lengths), positions)


def _load_hf_folder(folder):
  config_path = folder / hf.CONFIG_FILE
  bert_config = load_bert_config(config_path)
  tensors, files = hf_folder.load_tensors(folder)
  notes = ()
  if _is_untied(config_path) and hf_import.has_own_decoder(tensors):
    # Ours scores by the word embeddings: it would answer otherwise.
    tensors = hf_import.without_masked_lm_head(tensors)
    notes = (
      "its masked-LM head scores by weights of its own (tie_word_embeddings "
      "is false), which is not followed: the head is left out",
    )
  params, unused = hf_import.from_hf(tensors, bert_config, files)
  text = load_tokenization(folder, bert_config.vocab_size)
  positions = bert_config.max_position_embeddings
  lowercase = text.lowercase is not False  # transformers' default
  return Pretrained(
    source=str(folder),
    bert_config=bert_config,
    params=params,
    vocab=text.vocab,
    lowercase=lowercase,
    max_length=min(text.max_length or positions, positions),
    strip_accents=text.strip_accents,
    added_tokens=text.added_tokens,
    unused=unused,
    notes=(*notes, *text.notes, *_casing_notes(text, lowercase)),
  )


def _is_untied(config_path):
  config = load_json(config_path)
  return not get(config, "tie_word_embeddings", bool, True, config_path)


def _casing_notes(text, lowercase):
  """Returns a warning where text loses the capitals of the vocabulary."""
  capitals = [t for t in text.vocab or () if t[:1] != "[" and t != t.lower()]
  if not lowercase or not capitals:
    return ()
  said = "" if text.lowercase else ", for no file says otherwise"
  return (
    f"warning: text is lower-cased{said}, but the vocabulary has capitals "
    f"({len(capitals)} tokens, such as {capitals[0]!r}): expected "
    "do_lower_case false in tokenizer_config.json if the model is cased",
  )


def _load_tf_checkpoint(prefix):
  folder = prefix.parent
  bert_config = load_bert_config(folder / tf_checkpoint.CONFIG_FILE)
  tensors = tf_checkpoint.load_tensors(prefix)
  params, unused = hf_import.from_hf(tensors, bert_config)
  text = load_tokenization(folder, bert_config.vocab_size)
  lowercase, notes = text.lowercase, text.notes
  if lowercase is None:
    lowercase, reason = tf_checkpoint.guess_lowercase(folder, text.vocab or ())
    casing = "lower-cased" if lowercase else "cased"
    notes = (*notes, f"taken to be {casing}: {reason}")
  return Pretrained(
    source=str(prefix),
    bert_config=bert_config,
    params=params,
    vocab=text.vocab,
    lowercase=lowercase,
    max_length=bert_config.max_position_embeddings,
    strip_accents=text.strip_accents,
    added_tokens=text.added_tokens,
    unused=unused,
    notes=(*notes, *_casing_notes(text, lowercase)),
  )
