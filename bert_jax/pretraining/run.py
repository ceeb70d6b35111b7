"""What stays the same through a run: settings, corpus, mesh, model."""

import dataclasses

import jax
import ml_collections
import optax

from bert_jax.config import num_train_steps
from bert_jax.data import corpus_cache
from bert_jax.data.corpus import Corpus, open_corpus, split_documents
from bert_jax.data.examples import Examples
from bert_jax.data.tokenization import SPECIAL_TOKENS, token_dtype
from bert_jax.model.bert import BertConfig, create_bert_config, create_params
from bert_jax.pretraining.masking import MaskingVocab, create_masking_vocab
from bert_jax.sharding import mesh as mesh_lib
from bert_jax.sharding import partitioning
from bert_jax.sharding import rows as rows_lib
from bert_jax.storage import workdir as workdir_lib
from bert_jax.training.optimizer import create_optimizer
from bert_jax.training.step import EVAL_SEED
from bert_jax.training.train_state import create_train_state

PHASES = ("phase1", "phase2")


@dataclasses.dataclass(frozen=True)
class Run:
  """A pretraining run without its state.

  Attributes:
    config: the run's settings.
    corpus: `Corpus`; None for a run that is planned only.
    mesh: `jax.sharding.Mesh`.
    bert_config: `BertConfig`.
    masking_vocab: `MaskingVocab`.
    optimizer: optax transformation.
  """

  config: ml_collections.ConfigDict
  corpus: Corpus | None
  mesh: jax.sharding.Mesh
  bert_config: BertConfig
  masking_vocab: MaskingVocab
  optimizer: optax.GradientTransformation


def load_run(workdir):
  """Opens the run that a workdir holds.

  Args:
    workdir: `epath.Path`.

  Returns:
    `Run`.

  Raises:
    UserError: there is none, or its corpus is gone.
  """
  config = workdir_lib.load_config(workdir)
  directory = workdir_lib.corpus_dir(config, workdir)
  corpus = open_corpus(corpus_cache.fetch(directory))
  return create_run(config, corpus)


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
  """Builds a run without text, to compile for devices that nobody holds.

  Args:
    config: validated settings; `corpus.vocab_size` tokens are made up.
    devices: list of jax devices, real or described.

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
  mesh = mesh_lib.create_mesh(config.mesh, devices)
  mesh_lib.check_heads(mesh, config.model.num_attention_heads)
  for name in PHASES:
    phase = config[name]
    if phase.num_steps:
      rows = phase.batch_size // config.optimizer.grad_accumulation
      rows_lib.check_batch_size(mesh, f"{name}.batch_size", rows)
  return mesh


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
  """Returns the shapes of the state, a `TrainState`, without making it."""
  return jax.eval_shape(_state_creator(run), jax.random.key(0))


def abstract_sharded_state(run):
  """Returns shapes and shardings, as a checkpoint is restored to."""
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
  training, _ = split_documents(
    run.corpus.documents, run.config.corpus.eval_fraction
  )
  return _examples(run, name, training, run.config.seed)


def held_out_examples(run, name):
  """Returns the held-out `Examples` of phase `name`, the same in every run."""
  _, held_out = split_documents(
    run.corpus.documents, run.config.corpus.eval_fraction
  )
  return _examples(run, name, held_out, EVAL_SEED)


def _examples(run, name, documents, seed):
  length = run.config[name].max_seq_length
  return Examples(
    run.corpus, documents, length, seed, stream=PHASES.index(name)
  )
