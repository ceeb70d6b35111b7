"""A run's export, read by transformers and checked against the run itself."""

import contextlib
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from etils import epath

from bert_jax.config import default_config
from bert_jax.data.vocabulary import save_vocabulary
from bert_jax.errors import UserError
from bert_jax.inference import fillings
from bert_jax.inference.pretraining_heads import MASKED_LM, load_model
from bert_jax.model.bert import (
  BertForPreTraining,
  create_bert_config,
  create_params,
)
from bert_jax.pretraining import exporting
from bert_jax.storage import checkpoints, metric_log
from bert_jax.storage import workdir as workdir_lib
from bert_jax.training.optimizer import create_optimizer
from bert_jax.training.train_state import create_train_state
from bert_jax.weights.pretrained import load_init, trained_length

VOCAB = [
  *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "##s", "the", "of"),
  *("river", "farmer", "engine", "moves", "follows", "stone", "lantern"),
]
STEPS = (3, 5)


@pytest.fixture(scope="module", name="workdir")
def _workdir(tmp_path_factory):
  """A workdir as `train` leaves it, with two checkpoints of other weights."""
  workdir = epath.Path(tmp_path_factory.mktemp("export"))
  config = default_config()
  config.model.update(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=48,
    hidden_act="gelu_new",
    dtype="float32",
  )
  workdir_lib.save_config(config, workdir)
  save_vocabulary(workdir / "vocab.txt", VOCAB)
  optimizer = create_optimizer(config.optimizer, 1_000_000)
  manager = checkpoints.create_manager(config.checkpoint, workdir)
  for step in STEPS:
    params = create_params(
      create_bert_config(config, len(VOCAB)), jax.random.key(step)
    )
    # Larger than at the start of training, so that every weight tells.
    params = jax.tree.map(lambda x: x + 0.1 * jnp.sin(1e3 * x + 1), params)
    state = create_train_state(params, optimizer).replace(step=jnp.int32(step))
    checkpoints.save(manager, state, config, "corpus")
  manager.close()
  writer = metric_log.MetricWriter(workdir, first_step=0)
  row = {"step": 5, "split": "eval", "phase": "phase1", "mlm_loss": 1.25}
  row |= {"mlm_accuracy": 0.5, "nsp_accuracy": 0.75, "nsp_base_rate": 0.48}
  writer.write(row)
  writer.close()
  return workdir


@contextlib.contextmanager
def _no_warnings(caplog):
  """Fails if transformers logs a warning, such as an unexpected tensor."""
  logging.getLogger("transformers").propagate = True
  caplog.clear()
  with caplog.at_level(logging.WARNING, logger="transformers"):
    yield
  logged = [r for r in caplog.records if r.levelno >= logging.WARNING]
  assert not logged, logged[0].getMessage()


def _inputs():
  ids = np.array([[2, 7, 4, 10, 5, 3, 7, 4, 6, 3, 0, 0]])
  types = (np.arange(12)[None] >= 6) & (ids != 0)
  return ids, types.astype(np.int32), ids != 0


def test_the_exported_logits_are_the_runs(workdir, tmp_path, caplog):
  assert exporting.export(workdir, tmp_path / "hf") == 5
  with _no_warnings(caplog):
    model = transformers.AutoModelForPreTraining.from_pretrained(
      tmp_path / "hf"
    )
  ids, types, mask = _inputs()
  with torch.no_grad():
    theirs = model(
      input_ids=torch.tensor(ids),
      token_type_ids=torch.tensor(types),
      attention_mask=torch.tensor(mask),
    )
  exported = load_init(tmp_path / "hf")
  positions = np.arange(10)[None]
  mlm, nsp = BertForPreTraining(exported.bert_config).apply(
    {"params": exported.params},
    ids,
    types,
    mask,
    positions,
    deterministic=True,
  )
  np.testing.assert_allclose(
    mlm[:, :, : len(VOCAB)], theirs.prediction_logits[:, :10], atol=1e-4
  )
  np.testing.assert_allclose(nsp, theirs.seq_relationship_logits, atol=1e-4)


def test_an_older_step_can_be_exported(workdir, tmp_path):
  exporting.export(workdir, tmp_path / "old", step=3)
  exporting.export(workdir, tmp_path / "new", step=5)
  old = load_init(tmp_path / "old").params
  new = load_init(tmp_path / "new").params
  expected = create_params(
    create_bert_config(workdir_lib.load_config(workdir), len(VOCAB)),
    jax.random.key(3),
  )
  bias = old["cls"]["predictions"]["transform"]["dense"]["kernel"]
  drawn = expected["cls"]["predictions"]["transform"]["dense"]["kernel"]
  np.testing.assert_allclose(bias, drawn + 0.1 * jnp.sin(1e3 * drawn + 1))
  assert not np.allclose(
    bias, new["cls"]["predictions"]["transform"]["dense"]["kernel"]
  )


@pytest.mark.parametrize(
  ("heads", "auto_class"),
  [
    ("pretraining", transformers.AutoModelForPreTraining),
    ("mlm", transformers.AutoModelForMaskedLM),
    ("encoder", transformers.AutoModel),
  ],
)
def test_each_kind_loads_in_its_class_without_a_warning(
  workdir, tmp_path, caplog, heads, auto_class
):
  exporting.export(workdir, tmp_path / "hf", heads)
  names = {path.name for path in (tmp_path / "hf").iterdir()}
  assert names == {
    "config.json",
    "model.safetensors",
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "README.md",
    "curve.png",
    "metrics.jsonl",
  }
  with _no_warnings(caplog):
    auto_class.from_pretrained(tmp_path / "hf")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")


def test_the_learning_curve_comes_along_up_to_the_step(workdir, tmp_path):
  """The only row is of step 5."""
  exporting.export(workdir, tmp_path / "new", step=5)
  (row,) = (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()
  assert json.loads(row)["mlm_loss"] == 1.25
  png = (tmp_path / "new" / "curve.png").read_bytes()
  assert png.startswith(b"\x89PNG")
  assert (
    "![learning curve](curve.png)"
    in (tmp_path / "new" / "README.md").read_text()
  )
  exporting.export(workdir, tmp_path / "old", step=3)
  names = {path.name for path in (tmp_path / "old").iterdir()}
  assert not names & {"curve.png", "metrics.jsonl"}
  assert "curve.png" not in (tmp_path / "old" / "README.md").read_text()


def test_moments_come_along_under_the_names_of_the_weights(workdir, tmp_path):
  """Read by torch; a new optimizer's moments are zero."""
  exporting.export(workdir, tmp_path / "hf", with_optimizer=True)
  folder = tmp_path / "hf"
  weights = safetensors.torch.load_file(folder / "model.safetensors")
  moments = safetensors.torch.load_file(folder / "optimizer.safetensors")
  assert int(moments.pop("step")) == 0
  assert len(moments) == 2 * len(weights)
  for name, weight in weights.items():
    for prefix in ("exp_avg", "exp_avg_sq"):
      assert moments[f"{prefix}.{name}"].shape == weight.shape
  # An export with fewer files replaces it.
  exporting.export(workdir, folder)
  assert not (folder / "optimizer.safetensors").exists()


def test_our_fillings_are_the_pipelines(workdir, tmp_path):
  exporting.export(workdir, tmp_path / "hf", "mlm")
  pipeline = transformers.pipeline("fill-mask", str(tmp_path / "hf"))
  theirs = pipeline("the river [MASK] the stone.", top_k=3)
  exporting.export(workdir, tmp_path / "all")
  model = load_model(str(tmp_path / "all"), MASKED_LM)
  ((ours,),) = fillings.fill_masks(model, ["the river [MASK] the stone."], 3)
  assert [t["token_str"].replace(" ", "") for t in theirs] == [
    token.removeprefix("##") for token, _ in ours
  ]
  np.testing.assert_allclose(
    [t["score"] for t in theirs], [p for _, p in ours], rtol=1e-4
  )


def test_the_model_card_says_what_was_trained_and_measured(workdir, tmp_path):
  exporting.export(workdir, tmp_path / "hf")
  card = (tmp_path / "hf" / "README.md").read_text()
  assert card.startswith("---\nlibrary_name: transformers\n")
  for fact in ("after 5 steps", "`embedded`", "1.2500", "0.7500", "0.5200"):
    assert fact in card
  config = json.loads((tmp_path / "hf" / "config.json").read_text())
  assert config["hidden_act"] == "gelu_new"
  assert config["vocab_size"] == len(VOCAB)


def test_a_folder_without_a_run_is_one_line(tmp_path):
  with pytest.raises(UserError, match="holds no run"):
    exporting.export(tmp_path, tmp_path / "hf")


@pytest.mark.parametrize(
  ("step", "lengths", "num_steps", "expected"),
  [
    (3, (16, 48), (4, 4), 16),
    (4, (16, 48), (4, 4), 16),
    (5, (16, 48), (4, 4), 48),
    (0, (16, 48), (4, 4), 16),
    (5, (32, 16), (4, 4), 32),
    (3, (16, 40), (0, 4), 40),
    (5, (16, 64), (9, 0), 16),
  ],
)
def test_an_export_takes_texts_as_long_as_those_it_was_trained_on(
  tmp_path, step, lengths, num_steps, expected
):
  """Positions behind them hold the random numbers of the first step."""
  config = default_config()
  config.model.max_position_embeddings = 48
  for i, phase in enumerate((config.phase1, config.phase2)):
    phase.update(max_seq_length=lengths[i], num_steps=num_steps[i])
  assert trained_length(config, tmp_path, step) == expected


def test_the_length_stands_in_the_tokenizer_and_on_the_card(workdir, tmp_path):
  """The fixture's model has 48 positions; its phase 1 has length 128."""
  exporting.export(workdir, tmp_path / "hf")
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
  assert tokenizer.model_max_length == 48
  assert (
    "| longest input | 48 tokens" in (tmp_path / "hf/README.md").read_text()
  )


def test_every_checkpoint_can_be_exported_at_once(workdir, tmp_path):
  assert tuple(exporting.export_all(workdir, tmp_path)) == STEPS
  found = {step: load_init(str(tmp_path / str(step))).params for step in STEPS}
  for step in STEPS:
    exporting.export(workdir, tmp_path / "one", step=step)
    one = load_init(str(tmp_path / "one")).params
    jax.tree.map(np.testing.assert_array_equal, one, found[step])
