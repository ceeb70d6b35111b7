"""What a run begins with: `train --init` and `train --teacher`.

The model of `--init` is pretrained further on text of one's own. It brings its
architecture and its vocabulary; the config says the rest: text, steps,
optimizer, dropout. What a run was begun with is kept in its workdir
(`init.json` and `init_vocab.txt`), and so is a checkpoint of step 0, so that
neither a restart nor an export needs the source again.

A teacher (see distillation.py) is asked in every step, so a restart needs it
again: its place and a checksum of its weights are kept. It brings its
vocabulary where there is no `--init`.
"""

import dataclasses
import os

import jax

from bert_jax.data.vocabulary import save_vocabulary
from bert_jax.errors import UserError
from bert_jax.pretraining import distillation
from bert_jax.pretraining import run as run_lib
from bert_jax.pretraining.extension import extend_positions, extend_vocab
from bert_jax.pretraining.moments import is_adam_state, load_adam_state
from bert_jax.storage import files, paths
from bert_jax.storage import workdir as workdir_lib
from bert_jax.storage.workdir import CONFIG_FILE
from bert_jax.weights.pretrained import (
  RECORD_FILE,
  load_init,
  print_report,
  take_over,
)

VOCAB_FILE = "init_vocab.txt"
# Settings that the weights decide; the rest of config.model may be chosen.
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
    source: what `load_init` takes, an absolute path; "" for fresh weights.
    extend_vocab: number of pieces to add to the vocabulary.
    optimizer: "reset", or "keep" for Adam's moments of a workdir.
    extend_positions: longest sequence that the model shall have positions for,
      in tokens; 0 keeps its own.
    teacher: what `load_init` takes, an absolute path; "" for none.
  """

  source: str
  extend_vocab: int = 0
  optimizer: str = "reset"
  extend_positions: int = 0
  teacher: str = ""


def create_init(
  source, extend_vocab=0, optimizer="reset", extend_positions=0, teacher=None
):
  """Checks how a run is to begin.

  Args:
    source: what `load_init` takes, or None for fresh weights.
    extend_vocab: number of pieces to add to the vocabulary.
    optimizer: "reset" or "keep".
    extend_positions: number of positions, or 0 for the model's.
    teacher: what `load_init` takes, or None.

  Returns:
    `Init`, or None without a source and a teacher.

  Raises:
    UserError: the others need a source and there is none, or they clash.
  """
  if not source:
    if extend_vocab or extend_positions or optimizer != "reset":
      raise UserError(
        "--extend_vocab, --extend_positions and --init_optimizer say what to "
        "do with a model; expected --init too"
      )
    return Init("", teacher=_absolute(teacher)) if teacher else None
  for name, value in (
    ("extend_vocab", extend_vocab),
    ("extend_positions", extend_positions),
  ):
    if value < 0:
      raise UserError(f"--{name}={value}; expected 0 or more")
  if optimizer == "keep" and extend_positions:
    raise UserError(
      "--init_optimizer=keep has no moments for the positions of "
      "--extend_positions; expected --init_optimizer=reset"
    )
  if optimizer == "keep" and extend_vocab:
    raise UserError(
      f"--init_optimizer=keep has no moments for the {extend_vocab} pieces of "
      "--extend_vocab; expected --init_optimizer=reset"
    )
  if teacher and extend_vocab:
    raise UserError(
      f"--extend_vocab={extend_vocab} makes another vocabulary than "
      "--teacher's; expected 0"
    )
  return Init(
    _absolute(source),
    extend_vocab,
    optimizer,
    extend_positions,
    _absolute(teacher) if teacher else "",
  )


def _absolute(source):
  return os.fspath(paths.absolute(source))


def begin(config, workdir, init, hosts):
  """Decides what a run starts from; a restart takes the record of the first.

  Args:
    config: the settings asked for.
    workdir: `epath.Path` of the run.
    init: `Init`, or None.
    hosts: `Hosts`; all of its processes call this.

  Returns:
    config: the settings with the model's architecture and vocabulary.
    init: `Init` as recorded in the workdir, or None for a run from scratch.

  Raises:
    UserError: the workdir was begun with another `Init`, or the model can't be
      used.
  """
  # Only the first process reads: it writes the record below.
  record = hosts.on_first(lambda: _load_record(workdir))
  kept = record and Init(**record["init"])
  if init in (None, kept):
    if kept is None:
      return config, None
    return _with_overrides(config, workdir, record["config"]), kept
  # Without config.json no step was trained: another --init may take its place.
  if (workdir / CONFIG_FILE).exists():
    raise UserError(
      f"{workdir} was begun with {_spell(kept)}; expected the same or no "
      f"--init, not {_spell(init)} (or another --workdir)"
    )
  vocab, overrides, facts = _read_sources(config, init)
  if hosts.is_first:
    _write_record(workdir, init, vocab, overrides, facts)
  hosts.gather(None)  # barrier: the record is there for all processes
  return _with_overrides(config, workdir, overrides), init


def load_init_record(workdir):
  """Returns the `Init` that a workdir was begun with, or None."""
  record = _load_record(paths.as_path(workdir))
  return record and Init(**record["init"])


def _load_record(workdir):
  path = workdir / RECORD_FILE
  remedy = "start in another --workdir with --init"
  if not path.exists():
    # Until there are settings, a kill may have come between the two files.
    if (workdir / VOCAB_FILE).exists() and (workdir / CONFIG_FILE).exists():
      raise UserError(
        f"{path} is missing beside {VOCAB_FILE}; expected what the run was "
        f"begun with ({remedy})"
      )
    return None
  record = files.load_json(path, remedy)
  try:
    init = Init(**record["init"])
    for part in record["config"].values():
      part.items()
    if init.teacher:
      int(record["teacher_checksum"])
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
    f"--init_optimizer={init.optimizer} "
    f"--extend_positions={init.extend_positions} --teacher={init.teacher}"
  )


def _read_sources(config, init):
  """Reads the model to begin with and the teacher, as far as there are any.

  Returns:
    (vocabulary, list of str; settings that the models decide, nested dicts;
    what else is kept of them, a dict: max_length, at which the positions of
    the model were trained, and teacher_checksum).
  """
  if config.corpus.vocab_file:
    flag = "--init" if init.source else "--teacher"
    raise UserError(
      f"config.corpus.vocab_file is {config.corpus.vocab_file!r}, but {flag} "
      "brings its vocabulary; expected '' (or --extend_vocab to add pieces)"
    )
  pretrained, overrides, facts = None, {}, {}
  if init.source:
    pretrained, overrides = _read_source(config, init)
    facts["max_length"] = pretrained.max_length
  if not init.teacher:
    return pretrained.vocab, overrides, facts
  teacher, facts["teacher_checksum"] = distillation.read_teacher(init.teacher)
  if pretrained is not None:
    distillation.check_tokenizer(
      teacher, pretrained.vocab, pretrained.lowercase, pretrained.strip_accents
    )
  return teacher.vocab, overrides | _tokenizer_settings(teacher), facts


def _tokenizer_settings(pretrained):
  corpus = {
    "lowercase": pretrained.lowercase,
    "strip_accents": pretrained.strip_accents,
  }
  return {"corpus": corpus}


def _read_source(config, init):
  """Returns (`Pretrained`, the settings that it decides as nested dicts)."""
  pretrained = load_init(init.source)
  if pretrained.vocab is None:
    raise UserError(f"{init.source} has no vocabulary; expected a vocab.txt")
  if init.optimizer == "keep":
    _source_checkpoints(init.source)
  _check_corpus_tokenizer(pretrained)
  larger = extend_positions(pretrained, init.extend_positions)
  model = {k: getattr(larger.bert_config, k) for k in ARCHITECTURE}
  changed = [
    f"{k} {config.model[k]} -> {v}"
    for k, v in model.items()
    if config.model[k] != v
  ]
  if changed:
    print(f"init: the model decides config.model: {', '.join(changed)}")
  return pretrained, {"model": model} | _tokenizer_settings(pretrained)


def _check_corpus_tokenizer(pretrained):
  """Prints where corpus text is tokenised otherwise than by the source.

  Raises:
    UserError: the source can't take pairs.
  """
  pretrained.check_pairs()
  if pretrained.added_tokens:
    first = pretrained.added_tokens[0].content
    print(
      f"init: {len(pretrained.added_tokens)} added tokens, such as {first!r}, "
      "are read as words in the corpus and in the exported model"
    )


def _write_record(workdir, init, vocab, overrides, facts):
  save_vocabulary(workdir / VOCAB_FILE, vocab)
  record = {"init": dataclasses.asdict(init), "config": overrides} | facts
  files.save_json(workdir / RECORD_FILE, record)


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
    `TrainState` at step 0, sharded over the mesh; weights that the model lacks,
    such as a head, are drawn anew.

  Raises:
    UserError: the source is gone or has changed.
  """
  pretrained = extend_vocab(load_init(init.source), run.corpus.vocab)
  pretrained = extend_positions(pretrained, init.extend_positions)
  state = run_lib.create_state(run)
  params, fresh = take_over(state.params, pretrained)
  print_report(pretrained, fresh)
  opt_state = state.opt_state
  if init.optimizer == "keep":
    opt_state = _keep_moments(run, init.source, opt_state)
  return state.replace(params=params, opt_state=opt_state)


def with_teacher(run, workdir, init):
  """Adds the teacher that a run was begun with.

  Args:
    run: `Run`.
    workdir: `epath.Path` of the run.
    init: `Init`, or None.

  Returns:
    `Run`, with a teacher if `init` names one.

  Raises:
    UserError: the teacher is gone, has other weights by now, or does not fit
      the run.
  """
  if init is None or not init.teacher:
    return run
  pretrained, checksum = distillation.read_teacher(init.teacher)
  expected = _load_record(workdir)["teacher_checksum"]
  if checksum != expected:
    raise UserError(
      f"--teacher={init.teacher} has weights of checksum {checksum:08x}; "
      f"expected {expected:08x}, those that the run was begun with (copy a "
      "teacher that is still trained, or export it)"
    )
  corpus = run.config.corpus
  distillation.check_tokenizer(
    pretrained, run.corpus.vocab, corpus.lowercase, corpus.strip_accents
  )
  teacher = distillation.create_teacher(pretrained, run.config, run.mesh)
  return dataclasses.replace(run, teacher=teacher)


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
  """Returns an optimizer state with Adam's moments of another run.

  The learning rate schedule starts from its first step.
  """
  config, workdir = _source_checkpoints(source)
  kept = load_adam_state(workdir, config, run.bert_config, run.mesh)
  return jax.tree.map(
    lambda fresh: kept if is_adam_state(fresh) else fresh,
    opt_state,
    is_leaf=is_adam_state,
  )
