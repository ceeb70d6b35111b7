"""A pretraining run without its state: settings, corpus, mesh, model."""

import dataclasses
import functools
import math

import jax
import ml_collections
import optax

from bert_jax.config import PHASES, active_phases, num_train_steps
from bert_jax.data import corpus_cache
from bert_jax.data.corpus import Corpus, split_documents
from bert_jax.data.examples import Examples
from bert_jax.data.mixing import training_documents
from bert_jax.data.tokenization import SPECIAL_TOKENS, token_dtype
from bert_jax.errors import UserError
from bert_jax.model.bert import BertConfig, create_bert_config, create_params
from bert_jax.pretraining.diagnosis import create_frequency_bands
from bert_jax.pretraining.distillation import Teacher
from bert_jax.pretraining.masking import MaskingVocab, create_masking_vocab
from bert_jax.sharding import mesh as mesh_lib
from bert_jax.sharding import partitioning
from bert_jax.sharding import rows as rows_lib
from bert_jax.storage import workdir as workdir_lib
from bert_jax.training.optimizer import create_optimizer
from bert_jax.training.step import EVAL_SEED
from bert_jax.training.train_state import create_train_state


@dataclasses.dataclass(frozen=True)
class Run:
  """A pretraining run without its state.

  Attributes:
    config: the run's settings.
    corpus: `Corpus`; None for a run that is compiled but not executed.
    mesh: `jax.sharding.Mesh`.
    bert_config: `BertConfig`.
    masking_vocab: `MaskingVocab`.
    optimizer: optax transformation.
    teacher: `distillation.Teacher`, or None.
  """

  config: ml_collections.ConfigDict
  corpus: Corpus | None
  mesh: jax.sharding.Mesh
  bert_config: BertConfig
  masking_vocab: MaskingVocab
  optimizer: optax.GradientTransformation
  teacher: Teacher | None = None

  @functools.cached_property
  def frequency_bands(self):
    """int8 [V], see `diagnosis.create_frequency_bands`."""
    training = training_documents(self.config.corpus, self.corpus)
    return create_frequency_bands(self.corpus, training)


def load_run(workdir):
  """Opens the run that a workdir holds.

  Args:
    workdir: `epath.Path`.

  Returns:
    `Run` whose checkpoints can be read, on the mesh of its settings or, where
    that does not fit the devices here, on a data-parallel one.

  Raises:
    UserError: there is none, or its corpus is gone.
  """
  config = workdir_lib.load_config(workdir)
  directory = workdir_lib.corpus_dir(config, workdir)
  corpus = corpus_cache.open_corpus(directory)
  devices = jax.devices()
  try:
    create_mesh(config, devices)
  except UserError:
    devices = _fit_to_devices(config, devices)
  return _create_run(config, corpus.vocab, devices, corpus)


def _fit_to_devices(config, devices):
  """Sets `config.mesh` to data parallelism over the devices here.

  For reading a run that was trained on other devices.

  Returns:
    list of devices, as many as divide the batch size of each phase.

  Raises:
    UserError: a process would have none of them.
  """
  batch_sizes = [config[name].batch_size for name in active_phases(config)]
  config.optimizer.grad_accumulation = 1  # no step is made
  config.mesh.update({"data": -1, "fsdp": 1, "model": 1})
  used = devices[: math.gcd(len(devices), *batch_sizes)]
  if len({d.process_index for d in used}) < jax.process_count():
    raise UserError(
      f"batches of {' and '.join(map(str, batch_sizes))} rows divide over "
      f"{len(used)} of {len(devices)} devices, which are not those of all "
      f"{jax.process_count()} processes; expected fewer processes (start the "
      "command on one host)"
    )
  return used


def create_run(config, corpus):
  """Builds a run on all devices.

  Args:
    config: validated settings.
    corpus: `Corpus`.

  Returns:
    `Run`.

  Raises:
    UserError: the settings do not fit the devices.
  """
  return _create_run(config, corpus.vocab, jax.devices(), corpus)


def create_planned_run(config, devices):
  """Builds a run without text, to compile for devices that are not attached.

  Args:
    config: validated settings; `corpus.vocab_size` tokens are made up.
    devices: list of jax devices, attached or described by a topology.

  Returns:
    `Run` without a corpus.

  Raises:
    UserError: the settings do not fit the devices.
  """
  ordinary = range(config.corpus.vocab_size - len(SPECIAL_TOKENS))
  vocab = [*SPECIAL_TOKENS, *(f"token{i}" for i in ordinary)]
  return _create_run(config, vocab, devices, None)


def _create_run(config, vocab, devices, corpus):
  return Run(
    config=config,
    corpus=corpus,
    mesh=create_mesh(config, devices),
    bert_config=create_bert_config(config, len(vocab)),
    masking_vocab=create_masking_vocab(vocab),
    optimizer=create_optimizer(config.optimizer, num_train_steps(config)),
  )


def check_corpus(run, step, fingerprint):
  """Raises UserError if a checkpoint was trained on another corpus.

  Args:
    run: `Run`.
    step: int, of the checkpoint.
    fingerprint: str, of the corpus that it was trained on.
  """
  if fingerprint != run.corpus.fingerprint:
    raise UserError(
      f"checkpoint {step} was trained on corpus {fingerprint}; expected the "
      f"same, found {run.corpus.fingerprint} (set --config.corpus.dir to that "
      "corpus)"
    )


def create_mesh(config, devices=None):
  """Arranges devices for a run.

  Args:
    config: validated settings.
    devices: list of jax devices; all of them by default.

  Returns:
    `jax.sharding.Mesh`.

  Raises:
    UserError: the mesh or a batch does not fit the devices.
  """
  devices = jax.devices() if devices is None else devices
  check_mesh(config, len(devices))
  return mesh_lib.create_mesh(config.mesh, devices)


def check_mesh(config, num_devices):
  """Checks that a run fits a number of devices, attached or not.

  Args:
    config: validated settings.
    num_devices: int.

  Raises:
    UserError: the mesh or a batch does not fit the devices.
  """
  sizes = mesh_lib.mesh_sizes(config.mesh, num_devices)
  mesh = jax.sharding.AbstractMesh(tuple(sizes), mesh_lib.MESH_AXES)
  mesh_lib.check_heads(mesh, config.model.num_attention_heads)
  for name in active_phases(config):
    rows = config[name].batch_size // config.optimizer.grad_accumulation
    rows_lib.check_batch_size(mesh, f"{name}.batch_size", rows)


def create_state(run):
  """Draws the state before the first step, sharded over the mesh.

  Args:
    run: `Run`.

  Returns:
    `TrainState`.
  """
  key = jax.random.key(run.config.seed)
  shardings = partitioning.state_shardings(
    run.mesh, abstract_state(run), run.optimizer
  )
  return jax.jit(_state_creator(run), out_shardings=shardings)(key)


def abstract_state(run):
  """Returns the shapes of the state, as a `TrainState`."""
  return jax.eval_shape(_state_creator(run), jax.random.key(0))


def abstract_sharded_state(run):
  """Returns the shapes and shardings to restore a checkpoint with."""
  return partitioning.abstract_state(
    run.mesh, abstract_state(run), run.optimizer
  )


def abstract_batch(run, name):
  """Returns shapes and shardings of a batch of phase `name`."""
  phase = run.config[name]
  sharding = rows_lib.batch_sharding(run.mesh)

  def rows(dtype, *shape):
    shape = (phase.batch_size, *shape)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  return {
    "input_ids": rows(
      token_dtype(run.bert_config.vocab_size), phase.max_seq_length
    ),
    "a_length": rows("int32"),
    "length": rows("int32"),
    "next_sentence_labels": rows("int32"),
  }


def _state_creator(run):
  return lambda key: create_train_state(
    create_params(run.bert_config, key), run.optimizer
  )


def training_examples(run, name):
  """Returns the `Examples` that phase `name` trains on."""
  training = training_documents(run.config.corpus, run.corpus)
  return _examples(run, name, training, run.config.seed)


def held_out_examples(run, name, source=None):
  """Returns the held-out `Examples` of phase `name`, the same in every run.

  Args:
    run: `Run`.
    name: "phase1" or "phase2".
    source: number of the entry of `corpus.source` to take; None takes all.
  """
  held_out = _held_out_documents(run)
  if source is not None:
    held_out = held_out[held_out["source"] == source]
  return _examples(run, name, held_out, EVAL_SEED)


def held_out_sources(run):
  """Returns the entries of `corpus.source` to evaluate by themselves.

  Args:
    run: `Run`.

  Returns:
    dict of an entry's number to its name, for those of two held-out documents
    or more; empty where the corpus has one entry.
  """
  entries = run.corpus.manifest["entries"]
  if len(entries) == 1:
    return {}
  sources = _held_out_documents(run)["source"]
  return {
    number: entry["spec"]
    for number, entry in enumerate(entries)
    if (sources == number).sum() > 1
  }


def _held_out_documents(run):
  _, held_out = split_documents(
    run.corpus.documents, run.config.corpus.eval_fraction
  )
  return held_out


def _examples(run, name, documents, seed):
  length = run.config[name].max_seq_length
  return Examples(
    run.corpus, documents, length, seed, stream=PHASES.index(name)
  )
