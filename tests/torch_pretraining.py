"""Pretraining here and in torch, side by side on the same batches and masks.

Ours is the train step that `bert_jax.train` runs; the other is transformers'
BertForPreTraining under torch's AdamW, with the same weights at the start, the
same schedule and no dropout. Prints the losses of both and draws them:

    JAX_PLATFORMS=cpu python -m tests.torch_pretraining --steps=300 \
      --output=losses.png

`--seed` chooses other weights, batches and masks, `--dtype=bfloat16` what our
layers compute in (torch stays at float32).
"""

import argparse
import dataclasses
import pathlib
import tempfile

import jax
import matplotlib.figure
import numpy as np
import torch
import transformers

from bert_jax.config import default_config
from bert_jax.data.corpus import open_corpus
from bert_jax.data.examples import Examples
from bert_jax.data.preparation import prepare
from bert_jax.model.bert import create_bert_config, create_params
from bert_jax.pretraining import objective as objective_lib
from bert_jax.pretraining.masking import create_masking_vocab
from bert_jax.sharding import mesh as mesh_lib
from bert_jax.training.optimizer import create_optimizer, create_schedule
from bert_jax.training.step import make_train_step
from bert_jax.training.train_state import create_train_state
from bert_jax.weights import hf


def create_config(**changes):
  """Returns the settings of a small model; `changes` are `section.key`."""
  config = default_config()
  config.update_from_flattened_dict(
    {
      "model.hidden_size": 64,
      "model.num_hidden_layers": 2,
      "model.num_attention_heads": 2,
      "model.intermediate_size": 256,
      "model.max_position_embeddings": 32,
      "model.hidden_dropout_prob": 0.0,
      "model.attention_probs_dropout_prob": 0.0,
      "model.dtype": "float32",
      "corpus.vocab_size": 2_000,
      "phase1.max_seq_length": 32,
      "phase1.batch_size": 32,
      "phase1.max_predictions": 5,
      "phase2.num_steps": 0,
      "optimizer.learning_rate": 2e-3,
      "optimizer.warmup_steps": 20,
      **changes,
    }
  )
  return config


class Ours:
  """Our train step, its inputs made before it so that both can have them."""

  def __init__(self, config, corpus, num_steps):
    self.config = config
    self.bert_config = create_bert_config(config, len(corpus.vocab))
    self._examples = Examples(
      corpus,
      corpus.documents,
      config.phase1.max_seq_length,
      config.seed,
      stream=0,
    )
    objective = objective_lib.create_objective(
      config,
      config.phase1,
      self.bert_config,
      create_masking_vocab(corpus.vocab),
    )
    self._make_inputs = jax.jit(objective.make_inputs)
    optimizer = create_optimizer(config.optimizer, num_steps)
    key = jax.random.key(config.seed)
    self.state = create_train_state(
      create_params(self.bert_config, key), optimizer
    )
    self._step = make_train_step(
      config,
      dataclasses.replace(objective, make_inputs=lambda _, inputs: inputs),
      optimizer,
      create_schedule(config.optimizer, num_steps),
      mesh_lib.create_mesh(config.mesh, jax.devices()[:1]),
      self.state,
    )

  def inputs(self, number):
    """Returns the model's inputs of a step, masked; dict of arrays."""
    size = self.config.phase1.batch_size
    batch = self._examples.batch(number * size + np.arange(size))
    key = jax.random.fold_in(jax.random.key(self.config.seed + 1), number)
    return self._make_inputs(key, batch)

  def step(self, inputs):
    """Trains on inputs; returns the metrics, dict of floats."""
    self.state, metrics = self._step(self.state, inputs)
    return {name: float(value) for name, value in metrics.items()}

  def tensors(self):
    """Returns the weights under Hugging Face's names, copied."""
    tensors = hf.to_hf(self.state.params, self.bert_config, "pretraining")
    return {name: np.array(tensor) for name, tensor in tensors.items()}


def create_torch_model(ours, vocab_size, dtype=torch.float32):
  """Builds transformers' model with our weights.

  Args:
    ours: `Ours`.
    vocab_size: int.
    dtype: torch dtype of weights and arithmetic.

  Returns:
    `transformers.BertForPreTraining`, its dropout off by the settings.
  """
  settings = ours.config.model
  names = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "layer_norm_eps",
  )
  model = transformers.BertForPreTraining(
    transformers.BertConfig(
      vocab_size=vocab_size, **{name: settings[name] for name in names}
    )
  )
  tensors = {k: torch.tensor(v) for k, v in ours.tensors().items()}
  missing, unexpected = model.load_state_dict(tensors, strict=False)
  if unexpected or any("decoder" not in name for name in missing):
    raise ValueError(f"weights differ: {missing} and {unexpected}")
  # torch would leave out the gradient of a [PAD] that stands for a masked
  # token, as `random_token="any"` draws it; the original code does not.
  model.bert.embeddings.word_embeddings.padding_idx = None
  return model.to(dtype).train()


def torch_loss(model, inputs):
  """Returns transformers' loss on our inputs, a scalar tensor.

  The masked-LM loss is the mean over the chosen tokens of the batch, the
  next-sentence loss the mean over its rows.
  """
  tensors = {k: torch.tensor(np.array(v)) for k, v in inputs.items()}
  outputs = model(
    input_ids=tensors["input_ids"].long(),
    token_type_ids=tensors["token_type_ids"].long(),
    attention_mask=tensors["attention_mask"].long(),
  )
  positions = tensors["masked_lm_positions"].long()
  logits = outputs.prediction_logits.gather(
    1, positions[:, :, None].expand(-1, -1, model.config.vocab_size)
  )
  ids = tensors["masked_lm_ids"].long()
  losses = torch.nn.functional.cross_entropy(
    logits.flatten(0, 1), ids.flatten(), reduction="none"
  )
  weights = tensors["masked_lm_weights"].flatten().to(losses.dtype)
  next_sentence = torch.nn.functional.cross_entropy(
    outputs.seq_relationship_logits, tensors["next_sentence_labels"].long()
  )
  return (losses * weights).sum() / weights.sum() + next_sentence


def is_decayed(name):
  """Returns whether AdamW decays a tensor of Hugging Face's name."""
  return not name.endswith("bias") and "LayerNorm" not in name


def learning_rate(settings, number, num_steps):
  """Returns the rate of a step: a linear rise, then a linear fall to 0."""
  if number < settings.warmup_steps:
    return settings.learning_rate * (number + 1) / settings.warmup_steps
  rest = (num_steps - number) / (num_steps - settings.warmup_steps)
  return settings.learning_rate * rest


class TorchAdamW:
  """transformers' model under torch's AdamW."""

  def __init__(self, config, model, num_steps):
    self._settings, self._num_steps = config.optimizer, num_steps
    self._model, self._number = model, 0
    groups = [
      {
        "params": [
          p for n, p in model.named_parameters() if is_decayed(n) == decayed
        ],
        "weight_decay": self._settings.weight_decay if decayed else 0.0,
      }
      for decayed in (True, False)
    ]
    self._optimizer = torch.optim.AdamW(
      groups,
      betas=(self._settings.beta1, self._settings.beta2),
      eps=self._settings.eps,
    )

  def step(self, inputs):
    """Trains on inputs; returns the loss before the update."""
    rate = learning_rate(self._settings, self._number, self._num_steps)
    for group in self._optimizer.param_groups:
      group["lr"] = rate
    self._optimizer.zero_grad()
    loss = torch_loss(self._model, inputs)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(
      self._model.parameters(), self._settings.max_grad_norm
    )
    self._optimizer.step()
    self._number += 1
    return float(loss.detach())


def compare(config, corpus, num_steps):
  """Trains both; returns the losses, float64 [num_steps, 2]."""
  ours = Ours(config, corpus, num_steps)
  model = create_torch_model(ours, len(corpus.vocab))
  theirs = TorchAdamW(config, model, num_steps)
  losses = []
  for number in range(num_steps):
    inputs = ours.inputs(number)
    theirs_loss = theirs.step(inputs)
    losses.append((ours.step(inputs)["loss"], theirs_loss))
  return np.array(losses)


def _draw(losses, path):
  """Draws both curves over each other."""
  figure = matplotlib.figure.Figure(figsize=(7, 4))
  axes = figure.subplots()
  axes.plot(losses[:, 1], label="transformers, torch AdamW", linewidth=3)
  axes.plot(losses[:, 0], label="bert_jax", linewidth=1, color="black")
  axes.set_xlabel("step")
  axes.set_ylabel("training loss")
  axes.legend()
  figure.savefig(path, dpi=120)


def main():
  """Runs the comparison on the embedded text."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=int, default=300)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--output", type=pathlib.Path, help="a picture, .png")
  flags = parser.parse_args()
  config = create_config(seed=flags.seed, **{"model.dtype": flags.dtype})
  with tempfile.TemporaryDirectory() as workdir:
    corpus = open_corpus(prepare(config, workdir))
    losses = compare(config, corpus, flags.steps)
  print("step   bert_jax      torch  difference")
  for number in sorted({*range(0, flags.steps, 25), flags.steps - 1}):
    ours, theirs = losses[number]
    print(f"{number:4d} {ours:10.5f} {theirs:10.5f} {ours / theirs - 1:11.1e}")
  if flags.output:
    _draw(losses, flags.output)


if __name__ == "__main__":
  main()
