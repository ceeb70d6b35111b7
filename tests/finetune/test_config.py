"""Settings of fine-tuning: the paper's numbers, and what is refused."""

import importlib.util
import pathlib

import pytest

from bert_jax.config import flatten
from bert_jax.errors import UserError
from bert_jax.finetune.config import default_config, resolve, validate

CONFIGS = sorted(
  pathlib.Path(__file__).parents[2].glob("configs/finetune_*.py")
)


def _load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _load_named(name):
  (path,) = (p for p in CONFIGS if p.stem == f"finetune_{name}")
  return _load(path)


def _config(**settings):
  config = default_config()
  config.update_from_flattened_dict(
    {"data.train": "a.tsv", "data.dev": "b.tsv", **settings}
  )
  return config


def test_defaults_are_the_papers_recipe():
  """Devlin et al. 2018, section 4.1 and appendix A.3."""
  flat = flatten(default_config())
  expected = {
    "train.batch_size": 32,
    "train.num_epochs": 3.0,
    "optimizer.learning_rate": 5e-5,
    "optimizer.warmup_fraction": 0.1,
    "optimizer.weight_decay": 0.01,
    "data.max_seq_length": 128,
  }
  assert {key: flat[key] for key in expected} == expected


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_valid_and_says_how_to_run_it(path):
  module = _load(path)
  config = module.get_config()
  config.data.train = config.data.dev = "file"
  validate(config)
  assert f"configs/{path.name}" in module.__doc__
  assert "Hardware:" in module.__doc__


def test_glue_has_nine_tasks_and_names_them():
  glue = _load_named("glue")
  for task in ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"):
    validate(glue.get_config(task))
  assert glue.get_config("wnli").data.train == "tfds:glue/wnli:train"
  with pytest.raises(UserError, match="no task 'sst'; expected cola, sst2"):
    glue.get_config("sst")


def test_squad_2_has_questions_without_an_answer():
  squad = _load_named("squad")
  assert squad.get_config("2.0").task.no_answer
  assert not squad.get_config("1.1").task.no_answer
  with pytest.raises(UserError, match=r"1\.1 or 2\.0"):
    squad.get_config("3")


def test_similarity_trains_on_four_kinds_of_data():
  similarity = _load_named("similarity")
  for training in ("pairs", "triplets", "sentences", "scores"):
    config = similarity.get_config(training)
    config.data.train = config.data.dev = "file"
    validate(config)
  assert similarity.get_config("sentences").data.format == "lines"
  assert similarity.get_config("triplets").data.text_c
  assert similarity.get_config("scores").data.label
  with pytest.raises(UserError, match="no training 'sts'; expected pairs"):
    similarity.get_config("sts")


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("task.kind", "qa"),
    ("data.train", ""),
    ("data.format", "xlsx"),
    ("data.max_seq_length", 4),
    ("data.num_lengths", 0),
    ("task.pooling", "max"),
    ("task.max_score", 0.0),
    ("task.num_sentences", 0),
    ("model.dtype", "float16"),
    ("train.batch_size", 0),
    ("train.num_epochs", 0.0),
    ("optimizer.warmup_fraction", 1.0),
    ("optimizer.grad_accumulation", 5),
    ("eval.every_steps", -1),
    ("mesh.data", 0),
  ],
)
def test_a_wrong_value_is_named_with_what_is_expected(key, value):
  config = _config()
  config.update_from_flattened_dict({key: value})
  with pytest.raises(UserError) as error:
    validate(config)
  assert key in str(error.value) or key.split(".")[0] in str(error.value)
  assert "expected" in str(error.value)


def test_windows_must_move():
  config = _config(**{"task.kind": "question_answering"})
  with pytest.raises(
    UserError, match=r"doc_stride is 128; expected less than 61"
  ):
    validate(config)


def test_warm_up_and_evaluations_follow_the_data():
  config = resolve(_config(), 1000)
  assert config.optimizer.warmup_steps == 9  # of 93
  assert config.eval.every_steps == 31
  config = resolve(_config(**{"eval.every_steps": 7}), 1000)
  assert config.eval.every_steps == 7
