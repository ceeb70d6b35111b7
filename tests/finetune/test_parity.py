"""Heads, losses, gradients and steps against transformers on torch."""

import dataclasses

import flax.traverse_util
import jax
import ml_collections
import numpy as np
import pytest
import tokenizers
import torch
import transformers

from bert_jax.finetune import model as model_lib
from bert_jax.finetune import run as run_lib
from bert_jax.finetune import stage
from bert_jax.finetune.config import default_config
from bert_jax.finetune.features import (
  IGNORED,
  TrainingExamples,
  create_features,
)
from bert_jax.finetune.tasks import KINDS
from bert_jax.model.bert import NEVER
from bert_jax.sharding import rows as rows_lib
from bert_jax.training.optimizer import create_optimizer, create_schedule
from bert_jax.training.step import make_train_step
from bert_jax.training.train_state import create_train_state
from bert_jax.weights import hf
from tests.finetune import torch_finetune
from tests.weights import tiny_bert

NAMES = ("red", "green", "blue")
CLASSES = {
  "sequence-classification": transformers.BertForSequenceClassification,
  "token-classification": transformers.BertForTokenClassification,
  "question-answering": transformers.BertForQuestionAnswering,
}
BATCH_SIZE, LENGTH = 16, 12
# The other two have tests of their own.
_KINDS = [kind for kind in KINDS if kind not in ("similarity", "summarization")]


def _config(kind, **settings):
  config = default_config()
  config.update_from_flattened_dict(
    {
      "task.kind": kind,
      "model.dtype": "float32",
      "data.max_seq_length": 16,
      "train.batch_size": BATCH_SIZE,
      **settings,
    }
  )
  return config


def _load(folder, kind, config=None, **settings):
  """Returns (torch model, `TaskModel`, parameters) of the same weights."""
  names = {
    "regression": ("LABEL_0",),
    "question_answering": ("LABEL_0", "LABEL_1"),
  }
  names = names.get(kind, NAMES)
  torch_model = tiny_bert.save(
    folder,
    CLASSES[KINDS[kind].heads],
    tiny_bert.make_vocab(),
    id2label=dict(enumerate(names)),
    label2id={name: i for i, name in enumerate(names)},
    problem_type=KINDS[kind].problem_type,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    **settings,
  )
  config = config or _config(kind)
  found, head = model_lib.load_init(str(folder), config)
  model = model_lib.create_task_model(config, found, head, names)
  params, fresh = model_lib.create_params(model)
  assert not fresh
  return torch_model, model, jax.device_get(params)


def _apply(module, params, batch, key=None):
  apply = jax.jit(lambda p, b: model_lib.apply(module, p, b, key)[0])
  return apply(params, batch)


def _batch(kind, seed=0):
  """Random pairs of different lengths, with labels."""
  rng = np.random.default_rng(seed)
  a = rng.integers(1, 5, BATCH_SIZE)
  b = rng.integers(1, 5, BATCH_SIZE)
  length = a + b + 3
  ids = rng.integers(5, 80, (BATCH_SIZE, LENGTH))
  mask = np.arange(LENGTH)[None] < length[:, None]
  shape = (BATCH_SIZE,)
  labels = {
    "classification": rng.integers(0, 3, shape),
    "multilabel": rng.integers(0, 2, (BATCH_SIZE, 3)).astype(np.float32),
    "regression": rng.normal(size=shape).astype(np.float32),
    "tagging": np.where(
      mask & rng.integers(0, 2, mask.shape),
      rng.integers(0, 3, mask.shape),
      IGNORED,
    ),
    "question_answering": rng.integers(0, 4, (BATCH_SIZE, 2)),
  }[kind]
  if labels.dtype == np.int64:
    labels = labels.astype(np.int32)
  return {
    "input_ids": np.where(mask, ids, 0).astype(np.int32),
    "a_length": a.astype(np.int32),
    "length": length.astype(np.int32),
    "labels": labels,
  }


def _torch_outputs(model, kind, batch):
  slots = np.arange(batch["input_ids"].shape[1])[None]
  inputs = {
    "input_ids": batch["input_ids"],
    "attention_mask": slots < batch["length"][:, None],
    "token_type_ids": (slots >= batch["a_length"][:, None] + 2)
    & (slots < batch["length"][:, None]),
  }
  inputs = {k: torch.tensor(v.astype(np.int64)) for k, v in inputs.items()}
  labels = torch.tensor(batch["labels"])
  if labels.dtype == torch.int32:
    labels = labels.long()
  if kind == "question_answering":
    return model(
      **inputs, start_positions=labels[:, 0], end_positions=labels[:, 1]
    )
  return model(**inputs, labels=labels)


def _torch_loss(model, kind, batch):
  """Returns transformers' loss; of answers that of each row unpadded.

  Its own counts padding among an answer's places; ours does not, so that the
  loss of a row is the same in every bucket.
  """
  if kind != "question_answering":
    return _torch_outputs(model, kind, batch).loss
  losses = []
  for i in range(BATCH_SIZE):
    row = {name: array[i : i + 1] for name, array in batch.items()}
    row["input_ids"] = row["input_ids"][:, : batch["length"][i]]
    losses.append(_torch_outputs(model, kind, row).loss)
  return sum(losses) / BATCH_SIZE


def _loss_and_gradients(model, params, batch):
  def loss(params):
    sums = stage.create_objective(model).sums(params, batch, None)
    total, weight = sums["loss"]
    return total / weight

  return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("kind", _KINDS)
def test_logits_loss_and_gradients_are_transformers(kind, tmp_path):
  torch_model, model, params = _load(tmp_path, kind)
  batch = _batch(kind)
  expected = _torch_outputs(torch_model, kind, batch)
  expected_loss = _torch_loss(torch_model, kind, batch)
  expected_loss.backward()
  if kind == "question_answering":
    logits = torch.stack([expected.start_logits, expected.end_logits], 1)
  else:
    logits = expected.logits

  found = np.asarray(_apply(model.module, params, batch))
  real = np.arange(LENGTH)[None] < batch["length"][:, None]
  if kind == "question_answering":
    assert (found.swapaxes(1, 2)[~real] == NEVER).all()
    found, logits = found.swapaxes(1, 2), logits.swapaxes(1, 2)
  if kind in ("tagging", "question_answering"):
    found, logits = found[real], logits[torch.tensor(real)]
  np.testing.assert_allclose(found, logits.detach(), rtol=1e-4, atol=1e-5)

  loss, grads = _loss_and_gradients(model, params, batch)
  assert float(loss) == pytest.approx(expected_loss.item(), rel=1e-5)
  grads = hf.to_hf(grads, model.bert_config, model.kind.heads)
  # torch never moves the embedding of [PAD].
  name = "bert.embeddings.word_embeddings.weight"
  grads[name] = np.concatenate(
    [np.zeros_like(grads[name][:1]), grads[name][1:]]
  )
  for name, parameter in torch_model.named_parameters():
    np.testing.assert_allclose(
      grads[name], parameter.grad, rtol=1e-3, atol=2e-6, err_msg=name
    )


@pytest.mark.parametrize(
  "kind",
  [pytest.param("classification", marks=pytest.mark.slow), "tagging"],
)
def test_steps_are_those_of_torchs_adamw(kind, tmp_path):
  """Warm-up, decay, clipping and weight decay over eight steps, two halves."""
  num_steps = 8
  config = _config(
    kind,
    **{
      "optimizer.learning_rate": 3e-3,
      "optimizer.grad_accumulation": 2,
      "optimizer.max_grad_norm": 0.5,
    },
  )
  with config.unlocked():
    config.optimizer.warmup_steps = 2
  config.train.batch_size = 2 * BATCH_SIZE
  torch_model, model, params = _load(tmp_path, kind, config)
  torch_model.train()
  halves = _batch(kind, 0), _batch(kind, 1)
  batch = jax.tree.map(lambda *rows: np.concatenate(rows), *halves)

  optimizer = create_optimizer(config.optimizer, num_steps)
  schedule = create_schedule(config.optimizer, num_steps)
  state = jax.jit(lambda p: create_train_state(p, optimizer))(params)
  step = make_train_step(
    config,
    stage.create_objective(model),
    optimizer,
    schedule,
    model.mesh,
    state,
  )
  found = []
  for _ in range(num_steps):
    state, row = step(state, batch)
    found.append(float(row["loss"]))

  plain = [
    p
    for n, p in torch_model.named_parameters()
    if n.endswith("bias") or "LayerNorm" in n
  ]
  names = {id(p) for p in plain}
  rest = [p for p in torch_model.parameters() if id(p) not in names]
  adamw = torch.optim.AdamW(
    [
      {"params": rest, "weight_decay": 0.01},
      {"params": plain, "weight_decay": 0.0},
    ],
    lr=3e-3,
    eps=1e-6,
  )
  expected = []
  for number in range(num_steps):
    rate = 3e-3 * min(
      (number + 1) / 2, (num_steps - number) / (num_steps - 2), 1
    )
    for group in adamw.param_groups:
      group["lr"] = rate
    loss = _torch_outputs(torch_model, kind, batch).loss
    expected.append(loss.item())
    adamw.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(torch_model.parameters(), 0.5)
    adamw.step()
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert expected[-1] < expected[0] - 0.02


@pytest.mark.slow
def test_fifty_losses_of_a_run_are_those_of_torchs_loop(tmp_path):
  """The run's own batches, lengths, warm-up, decay and clipping; no dropout.

  torch pads each batch to its longest row, ours to one of two lengths.
  """
  rng = np.random.default_rng(0)
  lines = [
    f"{' '.join(rng.choice(list(letters), rng.integers(1, 13)))}\t{name}"
    for letters, name in 30
    * list(zip(("abc", "def", "ghi"), NAMES, strict=True))
  ]
  (tmp_path / "rows.tsv").write_text("\n".join(["sentence\tlabel", *lines]))
  config = _config(
    "classification",
    **{
      "data.train": str(tmp_path / "rows.tsv"),
      "data.dev": str(tmp_path / "rows.tsv"),
      "data.num_lengths": 2,
      "train.num_epochs": 9.0,
      "optimizer.learning_rate": 5e-4,
      "optimizer.max_grad_norm": 0.5,
    },
  )
  torch_model, _, _ = _load(tmp_path, "classification", config)
  run = run_lib.create_fine_tuning(config, str(tmp_path))
  assert (run.num_steps, len(run.train.lengths)) == (50, 2)
  state = run_lib.create_state(run)
  of_run = stage.create_stage(run, state, evaluate=None)
  found = []
  for batch in of_run.iterate_batches(0):
    batch = rows_lib.global_batch(run.model.mesh, batch)
    state, row = of_run.train_step(state, batch)
    found.append(float(row["loss"]))
  examples = TrainingExamples(run.train, config.seed, BATCH_SIZE, run.num_steps)
  expected = list(
    torch_finetune.iterate_losses(
      torch_model,
      run.model.kind,
      run.train,
      run.train.arrays["labels"],
      run.config,
      map(examples.rows, range(run.num_steps)),
      run.num_steps,
    )
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert np.mean(expected[-5:]) < np.mean(expected[:5]) - 0.05


@pytest.mark.parametrize("kind", _KINDS)
def test_an_export_is_the_same_model_in_transformers(kind, tmp_path):
  (tmp_path / "a").mkdir()
  _, model, params = _load(tmp_path / "a", kind)
  model_lib.save_model(tmp_path / "b", params, model, "card")
  again, loading = CLASSES[model.kind.heads].from_pretrained(
    tmp_path / "b", output_loading_info=True
  )
  assert not any(loading.values()), loading
  tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "b/tokenizer.json"))
  longest = 64 if kind == "tagging" else 16
  assert len(tokenizer.encode("a " * 99).ids) == longest
  assert again.config.problem_type == model.kind.problem_type
  assert tuple(again.config.id2label.values()) == model.labels
  assert again.config.label2id[model.labels[-1]] == len(model.labels) - 1
  batch = _batch(kind)
  expected = _torch_loss(again.eval(), kind, batch).item()
  loss, _ = _loss_and_gradients(model, params, batch)
  assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_an_output_layer_is_used_only_for_its_own_labels(tmp_path, capsys):
  _, model, _ = _load(tmp_path, "classification")
  found, head = model_lib.load_init(str(tmp_path), model.config)
  turned = model_lib.create_task_model(
    model.config, found, head, ("blue", "green", "red")
  )
  assert turned.labels == NAMES
  assert "goes on with its output layer" in capsys.readouterr().out
  other = model_lib.create_task_model(model.config, found, head, ("no", "yes"))
  assert "a fresh output layer for no, yes" in capsys.readouterr().out
  _, fresh = model_lib.create_params(other)
  assert set(fresh) == {"classifier/bias", "classifier/kernel"}
  tagging = _config("tagging")
  found, head = model_lib.load_init(str(tmp_path), tagging)
  model_lib.create_task_model(tagging, found, head, NAMES)
  assert "a fresh output layer" in capsys.readouterr().out


def test_random_weights_take_the_architecture_alone(tmp_path):
  _, model, params = _load(tmp_path, "classification")
  config = _config("classification", pretrained=False)
  drawn, fresh = model_lib.create_params(
    dataclasses.replace(model, config=config)
  )
  flat = flax.traverse_util.flatten_dict(drawn, sep="/")
  assert set(fresh) == set(flat)
  name = "embeddings"
  assert not np.allclose(
    drawn["bert"][name]["word_embeddings"],
    params["bert"][name]["word_embeddings"],
  )


def test_dropout_falls_on_the_vector_before_the_classifier(tmp_path):
  """With the body's dropout off, only the head's is left to differ."""
  _, model, params = _load(tmp_path, "classification")
  batch = _batch("classification")
  config = dataclasses.replace(model.bert_config, hidden_dropout_prob=0.5)
  module = model.kind.model(config, 3, model.config.task)
  calm = _apply(module, params, batch)
  keys = jax.random.split(jax.random.key(0), 2)
  first, second = (_apply(module, params, batch, key) for key in keys)
  assert not np.allclose(first, second)
  assert not np.allclose(first, calm)


@pytest.mark.parametrize("kind", ["classification", "tagging"])
def test_predictions_do_not_depend_on_the_lengths_of_batches(kind, tmp_path):
  _, model, params = _load(tmp_path, kind)
  rng = np.random.default_rng(0)
  lengths = rng.integers(2, 33, 40)
  token_ids = [rng.integers(5, 80, length).tolist() for length in lengths]
  found = []
  for num_lengths in (1, 3):
    data = ml_collections.ConfigDict(
      {"num_lengths": num_lengths, "max_seq_length": 32}
    )
    features = create_features(token_ids, data)
    assert len(features.lengths) == num_lengths
    found.append(model_lib.make_predict(model, params)(params, features))
  if kind == "tagging":
    real = np.arange(32)[None] < lengths[:, None]
    found = [logits[real] for logits in found]
  np.testing.assert_allclose(*found, atol=1e-5)
