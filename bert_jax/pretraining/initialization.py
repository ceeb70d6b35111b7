"""Goes on pretraining a model on text of one's own: `train --init`.

The model brings its architecture and its vocabulary; the config says the rest:
text, steps, optimizer, dropout. What a run was begun with is kept in its
workdir (`init.json` and `init_vocab.txt`), and so is a checkpoint of step 0,
so that neither a restart nor an export needs the source again.
"""

import dataclasses
import json
import os

import jax
import numpy as np
import optax

from bert_jax.config import num_train_steps
from bert_jax.data.vocabulary import save_vocabulary, split_piece
from bert_jax.errors import UserError
from bert_jax.model.bert import create_params
from bert_jax.pretraining import run as run_lib
from bert_jax.sharding import partitioning
from bert_jax.storage import checkpoints, files, paths
from bert_jax.storage import workdir as workdir_lib
from bert_jax.training.optimizer import create_optimizer
from bert_jax.training.train_state import create_train_state
from bert_jax.weights.pretrained import load_init, print_report, take_over

RECORD_FILE = "init.json"
VOCAB_FILE = "init_vocab.txt"
# What the weights fix; the rest of config.model is the run's to choose.
ARCHITECTURE = (
  "hidden_size",
  "num_hidden_layers",
  "num_attention_heads",
  "intermediate_size",
  "hidden_act",
  "max_position_embeddings",
  "type_vocab_size",
  "layer_norm_eps",
)


@dataclasses.dataclass(frozen=True)
class Init:
  """How a run begins.

  Attributes:
    source: what `load_init` takes, an absolute path.
    extend_vocab: number of pieces to add to the vocabulary.
    optimizer: "reset", or "keep" for Adam's moments of a workdir.
  """

  source: str
  extend_vocab: int = 0
  optimizer: str = "reset"


def create_init(source, extend_vocab=0, optimizer="reset"):
  """Checks how a run is to begin.

  Args:
    source: what `load_init` takes, or None for fresh weights.
    extend_vocab: number of pieces to add to the vocabulary.
    optimizer: "reset" or "keep".

  Returns:
    `Init`, or None without a source.

  Raises:
    UserError: the others need a source and there is none, or they clash.
  """
  if not source:
    if extend_vocab or optimizer != "reset":
      raise UserError(
        "--extend_vocab and --init_optimizer say what to do with a model; "
        "expected --init too"
      )
    return None
  if extend_vocab < 0:
    raise UserError(f"--extend_vocab={extend_vocab}; expected 0 or more")
  if optimizer == "keep" and extend_vocab:
    raise UserError(
      f"--init_optimizer=keep has no moments for the {extend_vocab} pieces of "
      "--extend_vocab; expected --init_optimizer=reset"
    )
  source = os.fspath(paths.absolute(source))
  return Init(source, extend_vocab, optimizer)


def begin(config, workdir, init, hosts):
  """Settles how a run begins, now or when it began.

  Args:
    config: the settings asked for.
    workdir: `epath.Path` of the run.
    init: `Init`, or None.
    hosts: `Hosts`; all of its processes call this.

  Returns:
    config: the settings with the model's architecture and vocabulary.
    init: `Init` as it is kept in the workdir, or None for a run from scratch.

  Raises:
    UserError: the workdir was begun otherwise, or the model can't be used.
  """
  # One process looks, so that none sees what another writes meanwhile.
  record = hosts.on_first(lambda: _load_record(workdir))
  kept = record and Init(**record["init"])
  if init in (None, kept):
    if kept is None:
      return config, None
    return _with_overrides(config, workdir, record["config"]), kept
  # Until there are settings nothing was trained: a mistake may be mended.
  if (workdir / "config.json").exists():
    raise UserError(
      f"{workdir} was begun with {_spell(kept)}; expected the same or no "
      f"--init, not {_spell(init)} (or another --workdir)"
    )
  pretrained, overrides = _read_source(config, init)
  if hosts.is_first:
    _write_record(workdir, init, pretrained.vocab, overrides)
  hosts.gather(None)  # from here on everybody may read it
  return _with_overrides(config, workdir, overrides), init


def load_init_record(workdir):
  """Returns the `Init` that a workdir was begun with, or None."""
  record = _load_record(paths.as_path(workdir))
  return record and Init(**record["init"])


def _load_record(workdir):
  path = workdir / RECORD_FILE
  if not path.exists():
    return None
  remedy = "start in another --workdir with --init"
  record = files.load_json(path, remedy)
  try:
    Init(**record["init"])
    record["config"]["model"].items()
  except (KeyError, TypeError, AttributeError):
    raise UserError(
      f"{path} does not say what the run was begun with ({remedy})"
    ) from None
  return record


def _spell(init):
  if init is None:
    return "no --init"
  return (
    f"--init={init.source} --extend_vocab={init.extend_vocab} "
    f"--init_optimizer={init.optimizer}"
  )


def _read_source(config, init):
  """Returns the `Pretrained` and, as nested dicts, what it decides."""
  if config.corpus.vocab_file:
    raise UserError(
      f"config.corpus.vocab_file is {config.corpus.vocab_file!r}, but --init "
      "brings its vocabulary; expected '' (or --extend_vocab to add pieces)"
    )
  pretrained = load_init(init.source)
  if pretrained.vocab is None:
    raise UserError(f"{init.source} has no vocabulary; expected a vocab.txt")
  if init.optimizer == "keep":
    _source_checkpoints(init.source)
  model = {k: getattr(pretrained.bert_config, k) for k in ARCHITECTURE}
  changed = [
    f"{k} {config.model[k]} -> {v}"
    for k, v in model.items()
    if config.model[k] != v
  ]
  if changed:
    print(f"init: the model decides config.model: {', '.join(changed)}")
  overrides = {"model": model, "corpus": {"lowercase": pretrained.lowercase}}
  return pretrained, overrides


def _write_record(workdir, init, vocab, overrides):
  save_vocabulary(workdir / VOCAB_FILE, vocab)
  record = {"init": dataclasses.asdict(init), "config": overrides}
  text = json.dumps(record, indent=2) + "\n"
  paths.write_file(workdir / RECORD_FILE, text)


def _with_overrides(config, workdir, overrides):
  config = config.copy_and_resolve_references()
  for part, values in overrides.items():
    config[part].update(values)
  config.corpus.vocab_file = str(workdir / VOCAB_FILE)
  return config


def create_initial_state(run, init):
  """Builds the state before the first step from a pretrained model.

  Args:
    run: `Run`, its vocabulary that of the model and `init.extend_vocab` more.
    init: `Init`.

  Returns:
    `TrainState` at step 0, sharded over the mesh; what the model lacks, such
    as a head, is fresh.

  Raises:
    UserError: the source is gone or is another model by now.
  """
  pretrained = extend(load_init(init.source), run.corpus.vocab)
  state = run_lib.create_state(run)
  params, fresh = take_over(state.params, pretrained)
  print_report(pretrained, fresh)
  opt_state = state.opt_state
  if init.optimizer == "keep":
    opt_state = _keep_moments(run, init.source, opt_state)
  return state.replace(params=params, opt_state=opt_state)


def extend(pretrained, vocab):
  """Adds pieces to a model's vocabulary.

  A new piece's embedding and output bias are the means of those of the pieces
  that spelled it before: its logit starts as the mean of their logits.

  Args:
    pretrained: `Pretrained`.
    vocab: its vocabulary and new pieces after it.

  Returns:
    `Pretrained` with that vocabulary.

  Raises:
    UserError: `vocab` does not begin with the model's vocabulary.
  """
  old = pretrained.vocab
  if vocab[: len(old)] != old:
    raise UserError(
      f"the vocabulary of {pretrained.source} has changed; expected the one "
      f"this run was begun with ({VOCAB_FILE} in its workdir)"
    )
  if len(vocab) == len(old):
    return pretrained
  num_new = len(vocab) - len(old)
  ids = {token: i for i, token in enumerate(old)}
  spellings = [
    [ids[p] for p in split_piece(new, ids)] for new in vocab[len(old) :]
  ]
  config = dataclasses.replace(pretrained.bert_config, vocab_size=len(vocab))

  def add_rows(array):
    rows = np.zeros((config.padded_vocab_size, *array.shape[1:]), np.float32)
    rows[: len(old)] = array[: len(old)]
    for row, spelling in enumerate(spellings, start=len(old)):
      rows[row] = array[spelling].mean(0)
    return rows

  params = jax.tree.map(lambda x: x, pretrained.params)  # new dicts
  embeddings = params["bert"]["embeddings"]
  embeddings["word_embeddings"] = add_rows(embeddings["word_embeddings"])
  predictions = params.get("cls", {}).get("predictions", {})
  if "bias" in predictions:
    predictions["bias"] = add_rows(predictions["bias"])
  return dataclasses.replace(
    pretrained,
    bert_config=config,
    params=params,
    vocab=vocab,
    notes=(
      *pretrained.notes,
      f"{num_new:,} new pieces start as the mean of their old ones",
    ),
  )


def _source_checkpoints(source):
  """Returns (config, workdir) of a source that is a run of ours."""
  workdir = paths.as_path(source)
  if not (workdir / "checkpoints").is_dir():
    raise UserError(
      f"--init={source} has no optimizer state; expected a workdir of "
      "bert_jax.train, or --init_optimizer=reset"
    )
  return workdir_lib.load_config(workdir), workdir


def _keep_moments(run, source, opt_state):
  """Returns a fresh optimizer state with Adam's moments of another run.

  The schedule begins anew.
  """
  config, workdir = _source_checkpoints(source)
  optimizer = create_optimizer(config.optimizer, num_train_steps(config))
  shapes = jax.eval_shape(
    lambda: create_train_state(
      create_params(run.bert_config, jax.random.key(0)), optimizer
    )
  )
  abstract = partitioning.abstract_state(run.mesh, shapes, optimizer)
  state, _ = checkpoints.restore(workdir, abstract)
  is_adam = lambda x: isinstance(x, optax.ScaleByAdamState)  # noqa: E731
  leaves = jax.tree.leaves(state.opt_state, is_leaf=is_adam)
  (kept,) = filter(is_adam, leaves)
  return jax.tree.map(
    lambda fresh: kept if is_adam(fresh) else fresh, opt_state, is_leaf=is_adam
  )
