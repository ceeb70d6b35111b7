"""Settings: the paper's numbers, what is refused, what may change."""

import importlib.util
import math
import pathlib

import hypothesis
import pytest
from hypothesis import strategies as st

from bert_jax import config as config_lib
from bert_jax.errors import UserError
from bert_jax.pretraining.masking import count_predictions

CONFIGS = sorted(
  path
  for path in pathlib.Path(__file__).parents[1].glob("configs/*.py")
  if not path.stem.startswith("finetune_")  # see test_finetune_config.py
)


def _load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_defaults_are_the_papers_recipe():
  """Devlin et al. 2018, sections 3.1 and A.2, and RECIPE-level constants."""
  flat = config_lib.flatten(config_lib.default_config())
  expected = {
    "model.hidden_size": 768,
    "model.num_hidden_layers": 12,
    "model.num_attention_heads": 12,
    "model.intermediate_size": 3072,
    "model.hidden_dropout_prob": 0.1,
    "model.attention_probs_dropout_prob": 0.1,
    "model.hidden_act": "gelu",
    "model.max_position_embeddings": 512,
    "model.type_vocab_size": 2,
    "model.layer_norm_eps": 1e-12,
    "model.initializer_range": 0.02,
    "model.dtype": "bfloat16",
    "corpus.vocab_size": 30_000,
    "corpus.lowercase": True,
    "phase1.max_seq_length": 128,
    "phase1.num_steps": 900_000,
    "phase1.batch_size": 256,
    "phase1.max_predictions": 20,
    "phase2.max_seq_length": 512,
    "phase2.num_steps": 100_000,
    "phase2.batch_size": 256,
    "phase2.max_predictions": 77,
    "masking.rate": 0.15,
    "masking.mask_prob": 0.8,
    "masking.random_prob": 0.1,
    "masking.random_token": "different",
    "masking.whole_word": False,
    "optimizer.name": "adamw",
    "optimizer.bias_correction": True,
    "optimizer.grad_accumulation": 1,
    "optimizer.learning_rate": 1e-4,
    "optimizer.warmup_steps": 10_000,
    "optimizer.weight_decay": 0.01,
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.999,
    "optimizer.eps": 1e-6,
    "optimizer.max_grad_norm": 1.0,
  }
  assert {key: flat[key] for key in expected} == expected
  assert config_lib.num_train_steps(config_lib.default_config()) == 1_000_000


@pytest.mark.parametrize(
  ("name", "sizes"),
  [
    ("base", (12, 768, 12)),
    ("large", (24, 1024, 16)),
    ("medium", (8, 512, 8)),
    ("small", (4, 512, 8)),
    ("mini", (4, 256, 4)),
    ("tiny", (2, 128, 2)),
  ],
)
def test_published_models_have_their_published_sizes(name, sizes):
  """L, H and A of Devlin et al. 2018 and Turc et al. 2019; F is 4 H."""
  root = pathlib.Path(__file__).parents[1]
  model = _load(root / f"configs/bert_{name}.py").get_config().model
  num_layers, width, num_heads = sizes
  assert model.num_hidden_layers == num_layers
  assert model.hidden_size == width
  assert model.num_attention_heads == num_heads
  assert model.intermediate_size == 4 * width


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_valid_and_says_how_to_run_it(path):
  module = _load(path)
  config_lib.validate(module.get_config())
  assert f"configs/{path.name}" in module.__doc__ or "launch/" in module.__doc__
  assert "Hardware:" in module.__doc__


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("model.num_attention_heads", 7),
    ("model.hidden_act", "relu"),
    ("model.dtype", "float16"),
    ("model.hidden_dropout_prob", 1.0),
    ("phase1.max_seq_length", 1024),
    ("phase1.batch_size", 0),
    ("phase2.max_predictions", 0),
    ("corpus.eval_fraction", 0.0),
    ("corpus.vocab_size", 1_000_001),
    ("masking.rate", 0.0),
    ("masking.random_token", "same"),
    ("optimizer.name", "sgd"),
    ("optimizer.warmup_steps", 1_000_000),
    ("optimizer.grad_accumulation", 3),
    ("mesh.data", 0),
    ("log.every_steps", 0),
    ("optimizer.max_grad_norm", 0.0),
    ("optimizer.eps", -1e-6),
    ("optimizer.beta1", 1.5),
    ("optimizer.weight_decay", -0.01),
    ("corpus.language", "klingon"),
    ("masking.rate", 0.4),  # more than phase1.max_predictions holds
  ],
)
def test_a_wrong_setting_is_named_with_what_it_takes(key, value):
  config = config_lib.default_config()
  with config.unlocked():
    config.update_from_flattened_dict({key: value})
  with pytest.raises(UserError, match="expected") as e:
    config_lib.validate(config)
  assert "\n" not in str(e.value)


@pytest.mark.parametrize(
  ("typo", "meant"),
  [
    ("phase1.num_stesp", "phase1.num_steps"),
    ("hidden_size", "model.hidden_size"),
    ("lr", "optimizer.learning_rate"),
    ("optimizer.warmup", "optimizer.warmup_steps"),
    ("phase2.batchsize", "phase2.batch_size"),
  ],
)
def test_an_unknown_key_brings_the_nearest_known_one(typo, meant):
  known = list(config_lib.flatten(config_lib.default_config()))
  assert config_lib.suggest_key(typo, known) == meant


NUMBERS = [
  key
  for key, value in config_lib.flatten(config_lib.default_config()).items()
  if type(value) in (int, float)
]


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_a_range(key):
  config = config_lib.default_config()
  config.phase3.num_steps = 1  # or nothing of it is looked at
  default = config_lib.flatten(config)[key]
  wrong = (-2,) if isinstance(default, int) else (-2.0, math.inf, math.nan)
  for value in wrong:
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=f"config.{key} is "):
      config_lib.validate(config)


@pytest.mark.parametrize(
  ("length", "rate"), [(128, 0.15), (128, 0.4), (64, 0.3)]
)
def test_no_sequence_has_more_to_predict_than_max_predictions(length, rate):
  """The smallest value that is accepted holds what masking takes."""
  config = config_lib.default_config()
  config.masking.rate = rate
  config.phase2.num_steps = 0
  config.phase1.max_seq_length = length
  most = count_predictions(length, rate, length).max()
  config.phase1.max_predictions = int(most)
  config_lib.validate(config)
  config.phase1.max_predictions = int(most) - 1
  with pytest.raises(UserError, match=f"phase1.max_predictions .* {most} to"):
    config_lib.validate(config)


KEYS = st.sets(
  st.sampled_from(sorted(config_lib.flatten(config_lib.default_config())))
)


@hypothesis.given(KEYS, KEYS)
def test_just_the_settings_that_differ_are_told(changed, missing):
  """But for those that may change, alone or with all of their section."""
  config = config_lib.default_config()
  saved = config.to_dict()
  for key in changed | missing:
    *section, name = key.split(".")
    part = saved[section[0]] if section else saved
    if key in missing:
      del part[name]
    else:
      part[name] = [part[name]]
  allowed = set(config_lib.CHANGEABLE)
  told = {key for key, _, _ in config_lib.differing_keys(config, saved)}
  assert told == {
    key
    for key in changed | missing
    if key not in allowed and key.split(".")[0] not in allowed
  }


def test_steps_and_logging_may_change_but_the_model_may_not():
  saved = config_lib.default_config().to_dict()
  config = config_lib.default_config()
  config.phase2.num_steps = 7
  config.log.every_steps = 1
  config.mesh.data = 4
  config.checkpoint.keep = 9
  config.model.remat = True
  assert config_lib.differing_keys(config, saved) == []
  config.model.hidden_size = 64
  config.phase1.batch_size = 8
  assert config_lib.differing_keys(config, saved) == [
    ("model.hidden_size", 768, 64),
    ("phase1.batch_size", 256, 8),
  ]
