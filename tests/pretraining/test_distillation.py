"""A teacher: its loss, its place in the step, and what it must be."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import torch
import transformers
from etils import epath

from bert_jax.config import default_config
from bert_jax.data.tokenization import SPECIAL_TOKENS
from bert_jax.distributed.hosts import Hosts
from bert_jax.errors import UserError
from bert_jax.model.bert import create_bert_config, create_params
from bert_jax.pretraining import distillation, exporting, initialization, losses
from bert_jax.pretraining.distillation import Teacher
from bert_jax.pretraining.initialization import Init
from bert_jax.pretraining.masking import create_masking_vocab
from bert_jax.pretraining.objective import create_objective
from bert_jax.sharding import mesh as mesh_lib
from bert_jax.sharding import partitioning
from bert_jax.sharding import rows as rows_lib
from bert_jax.storage import metric_log
from bert_jax.training import step as step_lib
from bert_jax.training.optimizer import create_optimizer, create_schedule
from bert_jax.training.train_state import create_train_state
from tests import commands, texts
from tests.closeness import OTHER_LIBRARY, REORDERED, assert_close
from tests.weights import tiny_bert

VOCAB = [*SPECIAL_TOKENS, *(f"w{i}" for i in range(195))]


def test_the_loss_and_its_gradient_are_torchs():
  rng = np.random.default_rng(0)
  student, teacher = rng.normal(0, 3, (2, 4, 3, 11)).astype(np.float32)
  weights = (np.arange(3) < [[1], [3], [2], [0]]).astype(np.float32)

  def loss(logits):
    total, weight = losses.distillation_loss(logits, teacher, weights)
    return total / weight

  found, gradient = jax.jit(jax.value_and_grad(loss))(student)
  logits = torch.tensor(student, requires_grad=True)
  expected = torch.nn.KLDivLoss(reduction="batchmean", log_target=True)(
    torch.log_softmax(logits[weights > 0] / 2, -1),
    torch.log_softmax(torch.tensor(teacher)[weights > 0] / 2, -1),
  )
  expected = 2**2 * expected
  expected.backward()
  assert float(found) == pytest.approx(expected.item(), rel=1e-5)
  assert_close(gradient, logits.grad, OTHER_LIBRARY)
  same, _ = losses.distillation_loss(teacher, teacher, weights)
  assert float(same) == pytest.approx(0, abs=1e-6)


def _config(**overrides):
  config = default_config()
  config.update_from_flattened_dict(
    {
      "model.hidden_size": 32,
      "model.num_hidden_layers": 1,
      "model.num_attention_heads": 4,
      "model.intermediate_size": 64,
      "model.max_position_embeddings": 16,
      "model.dtype": "float32",
      "phase1.max_seq_length": 16,
      "phase1.batch_size": 16,
      "phase1.max_predictions": 3,
      "phase2.num_steps": 0,
      "optimizer.warmup_steps": 2,
      **overrides,
    }
  )
  return config


def _step(config, mesh_sizes, num_devices):
  """Returns the metrics of a first step beside a teacher of another size."""
  config.mesh.update(dict(zip(mesh_lib.MESH_AXES, mesh_sizes, strict=True)))
  mesh = mesh_lib.create_mesh(config.mesh, jax.devices()[:num_devices])
  bert_config = create_bert_config(config, len(VOCAB))
  larger = dataclasses.replace(bert_config, hidden_size=64)

  @jax.jit
  def create(key):
    # Larger weights than fresh ones, whose predictions are all alike.
    return jax.tree.map(lambda x: 5 * x, create_params(larger, key))

  teacher_params = create(jax.random.key(1))
  teacher = Teacher(
    larger,
    jax.device_put(
      teacher_params, partitioning.param_shardings(mesh, teacher_params)
    ),
  )
  optimizer = create_optimizer(config.optimizer, 9)
  state = jax.jit(
    lambda key: create_train_state(create_params(bert_config, key), optimizer)
  )(jax.random.key(0))
  shardings = partitioning.state_shardings(mesh, state, optimizer)
  objective = create_objective(
    config, config.phase1, bert_config, create_masking_vocab(VOCAB), teacher
  )
  train_step = step_lib.make_train_step(
    config,
    objective,
    optimizer,
    create_schedule(config.optimizer, 9),
    mesh,
    state,
  )
  rng = np.random.default_rng(0)
  batch = {
    "input_ids": rng.integers(5, 200, (16, 16)).astype(np.uint16),
    "a_length": np.full(16, 5, np.int32),
    "length": rng.integers(10, 17, 16).astype(np.int32),
    "next_sentence_labels": rng.integers(0, 2, 16).astype(np.int32),
  }
  _, metrics = train_step(
    jax.device_put(state, shardings),
    rows_lib.global_batch(mesh, batch),
    teacher.params,
  )
  return {name: float(value) for name, value in metrics.items()}


@pytest.mark.slow
def test_the_loss_is_the_sum_on_any_mesh_and_in_halves(monkeypatch):
  monkeypatch.setattr(partitioning, "MIN_SPLIT_SIZE", 64)
  config = _config(
    **{
      "model.hidden_dropout_prob": 0.0,
      "model.attention_probs_dropout_prob": 0.0,
    }
  )
  alone = _step(config, (1, 1, 1), 1)
  parts = ("mlm_loss", "nsp_loss", "distillation_loss")
  assert alone["loss"] == pytest.approx(sum(alone[name] for name in parts))
  assert alone["distillation_loss"] > 0.1
  config.optimizer.grad_accumulation = 2
  spread = _step(config, (2, 2, 2), 8)
  for name in (*parts, "grad_norm"):
    assert spread[name] == pytest.approx(alone[name], rel=REORDERED)


@pytest.fixture(scope="module", name="folders")
def _folders(tmp_path_factory):
  """Folders of a teacher, of one with other weights, and of what is none."""
  root = tmp_path_factory.mktemp("teachers")
  vocab = tiny_bert.make_vocab()
  for name, model_class, words in (
    ("teacher", transformers.BertForPreTraining, vocab),
    ("encoder", transformers.BertModel, vocab),
    ("other_words", transformers.BertForPreTraining, [*vocab[:-1], "##~"]),
    ("fewer_words", transformers.BertForPreTraining, vocab[:-1]),
  ):
    tiny_bert.save(root / name, model_class, words)
  return root


def _begin(folders, workdir, **init):
  config = _config(**{"corpus.source": "x.txt"})
  init = {name: str(folders / folder) for name, folder in init.items()}
  init = Init(init.get("source", ""), teacher=init["teacher"])
  return initialization.begin(config, epath.Path(workdir), init, Hosts())


def test_a_teacher_brings_its_words_and_not_its_size(folders, tmp_path):
  config, init = _begin(folders, tmp_path, teacher="teacher")
  assert config.model.hidden_size == 32
  assert config.corpus.lowercase is True
  vocab = (folders / "teacher" / "vocab.txt").read_text()
  assert epath.Path(config.corpus.vocab_file).read_text() == vocab
  again, kept = initialization.begin(
    _config(), epath.Path(tmp_path), None, Hosts()
  )
  assert kept == init
  assert again.corpus.vocab_file == config.corpus.vocab_file


@pytest.mark.parametrize(
  ("models", "message"),
  [
    ({"teacher": "encoder"}, "no masked-LM head"),
    ({"teacher": "nothing"}, "holds no model"),
    (
      {"source": "teacher", "teacher": "other_words"},
      "token 88 of this run's vocabulary is '##-'; expected '##~'",
    ),
    (
      {"source": "teacher", "teacher": "fewer_words"},
      "has tokens 89; expected 88",
    ),
  ],
)
def test_what_can_not_teach_is_one_line(folders, tmp_path, models, message):
  with pytest.raises(UserError, match=message) as error:
    _begin(folders, tmp_path, **models)
  assert "\n" not in str(error.value)


def test_a_run_keeps_its_teacher(folders, tmp_path):
  """Another one, other weights at its place, and a longer phase are refused."""
  place = tmp_path / "teacher"
  shutil.copytree(folders / "teacher", place)
  workdir = tmp_path / "run"
  config, init = _begin(tmp_path, workdir, teacher="teacher")
  (workdir / "config.json").write_text("{}")
  with pytest.raises(UserError, match=r"was begun with .*--teacher=.*teacher;"):
    _begin(folders, workdir, teacher="teacher")
  shutil.rmtree(place)
  tiny_bert.save(
    place, transformers.BertForPreTraining, tiny_bert.make_vocab(), seed=1
  )
  with pytest.raises(UserError, match=r"has weights of checksum .*; expected"):
    initialization.with_teacher(None, epath.Path(workdir), init)
  teacher, _ = distillation.read_teacher(str(place))
  config.phase1.max_seq_length = 128
  with pytest.raises(UserError, match=r"max_seq_length is 128; .* 64"):
    distillation.create_teacher(
      teacher, config, mesh_lib.create_mesh(config.mesh)
    )
  with pytest.raises(UserError, match="extend_vocab=3 makes another"):
    initialization.create_init("x", 3, teacher="y")


SETTINGS = (
  "--config=configs/bert_tiny.py",
  "--config.model.dtype=float32",
  "--config.model.hidden_act=gelu_new",
  "--config.model.intermediate_size=64",
  "--config.model.max_position_embeddings=32",
  "--config.corpus.eval_fraction=0.1",
  "--config.phase1.max_seq_length=32",
  "--config.phase1.max_predictions=5",
  "--config.phase1.batch_size=16",
  "--config.phase2.num_steps=0",
  "--config.optimizer.warmup_steps=5",
  "--config.optimizer.learning_rate=5e-3",
  "--config.eval.num_batches=4",
  "--config.log.every_steps=1",
)


def _train(workdir, text, num_steps, hidden_size, *arguments):
  return commands.output_of(
    "train",
    f"--workdir={workdir}",
    *SETTINGS,
    f"--config.corpus.source={text}",
    f"--config.phase1.num_steps={num_steps}",
    f"--config.model.hidden_size={hidden_size}",
    f"--config.model.num_hidden_layers={hidden_size // 32}",
    "--config.model.num_attention_heads=2",
    *arguments,
  )


@pytest.mark.slow
def test_a_student_learns_faster_and_resumes_to_the_same_figures(tmp_path):
  """And needs neither the vocabulary nor, when it goes on, the flag."""
  text = tmp_path / "text.txt"
  texts.write_text(text, texts.make_documents(60, 12))
  words = "--config.corpus.vocab_size=200"
  _train(tmp_path / "teacher", text, 100, 64, words)
  teacher = metric_log.load_rows(tmp_path / "teacher")[-1]["mlm_loss"]
  _train(
    tmp_path / "taught",
    text,
    40,
    32,
    f"--teacher={tmp_path / 'teacher'}",
    "--config.checkpoint.every_steps=20",
    "--config.checkpoint.keep=9",
  )
  vocab = f"--config.corpus.vocab_file={tmp_path / 'teacher' / 'vocab.txt'}"
  _train(tmp_path / "alone", text, 40, 32, vocab)
  taught, alone = (
    metric_log.load_rows(tmp_path / name)[-1] for name in ("taught", "alone")
  )
  assert teacher < taught["mlm_loss"] < alone["mlm_loss"]
  assert taught["distillation_loss"] is None  # held out: as every other run

  resumed = tmp_path / "resumed"
  shutil.copytree(tmp_path / "taught", resumed)
  shutil.rmtree(resumed / "checkpoints" / "40")
  assert "continuing after step 20" in _train(resumed, text, 40, 32)
  rows, again = map(metric_log.load_rows, (tmp_path / "taught", resumed))
  names = ("step", "loss", "mlm_loss", "distillation_loss", "grad_norm")
  assert [[row[n] for n in names] for row in again] == [
    [row[n] for n in names] for row in rows
  ]
  losses_of = [r["distillation_loss"] for r in rows if r["split"] == "train"]
  assert losses_of[-1] < 0.7 * losses_of[0]
  exporting.export(resumed, tmp_path / "hf")
  card = (tmp_path / "hf" / "README.md").read_text()
  assert "from scratch, with `teacher` as the teacher," in card
  record = json.loads((resumed / initialization.RECORD_FILE).read_text())
  assert record["init"]["teacher"] == str(tmp_path / "teacher")
