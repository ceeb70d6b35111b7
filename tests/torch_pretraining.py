"""Pretraining here and in torch, side by side on the same batches and masks.

Ours is the train step that `bert_jax.train` runs; the other is transformers'
BertForPreTraining under torch's AdamW, with the same weights at the start and
the same schedule. Three comparisons: float32 without dropout, bfloat16 without
dropout (torch by autocast), and float32 with dropout, where the two draw
different masks, for several seeds. Prints a table in Markdown and draws the
losses, some five minutes on two CPU cores:

    JAX_PLATFORMS=cpu python -m tests.torch_pretraining --output=losses.png

`--seed` is the first seed, which chooses weights, batches and masks.
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
    self._is_bfloat16 = config.model.dtype == "bfloat16"
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
    with torch.autocast("cpu", torch.bfloat16, enabled=self._is_bfloat16):
      loss = torch_loss(self._model, inputs)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(
      self._model.parameters(), self._settings.max_grad_norm
    )
    self._optimizer.step()
    self._number += 1
    return float(loss.detach())


def compare(config, corpus, num_steps):
  """Trains both; returns the losses of ours and torch, float64 [num_steps, 2].

  The seed of the settings is that of torch's dropout too.
  """
  torch.manual_seed(config.seed)
  ours = Ours(config, corpus, num_steps)
  model = create_torch_model(ours, len(corpus.vocab))
  theirs = TorchAdamW(config, model, num_steps)
  losses = []
  for number in range(num_steps):
    inputs = ours.inputs(number)
    theirs_loss = theirs.step(inputs)
    losses.append((ours.step(inputs)["loss"], theirs_loss))
  return np.array(losses)


DROPOUT = {
  "model.hidden_dropout_prob": 0.1,
  "model.attention_probs_dropout_prob": 0.1,
}


def compare_all(corpus, seeds, num_steps):
  """Makes the three comparisons.

  Args:
    corpus: `Corpus`.
    seeds: list of int, of which the first does without dropout.
    num_steps: of each run.

  Returns:
    (losses in float32, in bfloat16, list of the losses with dropout), each
    float64 [num_steps, 2].
  """
  float32, bfloat16 = (
    compare(
      create_config(seed=seeds[0], **{"model.dtype": dtype}), corpus, num_steps
    )
    for dtype in ("float32", "bfloat16")
  )
  dropped = [
    compare(create_config(seed=seed, **DROPOUT), corpus, num_steps)
    for seed in seeds
  ]
  return float32, bfloat16, dropped


def last_means(losses):
  """Returns the means of the last 50 losses, float64 [2]."""
  return losses[-50:].mean(axis=0)


def rounding(bfloat16, float32):
  """Returns by how much bfloat16 changes the losses: root mean square, [2]."""
  return np.sqrt(((bfloat16 - float32) ** 2).mean(axis=0))


def print_table(float32, bfloat16, dropped):
  """Prints the results of `compare_all` in Markdown."""
  print("| | bert_jax | torch |\n|---|---|---|")
  for number in sorted({0, *range(49, len(float32), 50), len(float32) - 1}):
    print_row(f"float32, loss of step {number + 1}", float32[number], 5)
  print_row("float32, mean of the last 50 losses", last_means(float32))
  print_row("bfloat16, mean of the last 50 losses", last_means(bfloat16))
  print_row(
    "bfloat16 beside float32, root mean square of the difference",
    rounding(bfloat16, float32),
  )
  means = np.array([last_means(losses) for losses in dropped])
  for number, row in enumerate(means):
    print_row(f"dropout, run {number + 1}, mean of the last 50", row)
  print_row(f"dropout, mean of the {len(means)} runs", means.mean(axis=0))
  print_row("their standard deviation", means.std(axis=0, ddof=1))
  error = np.abs(float32[:, 0] / float32[:, 1] - 1).max()
  print(f"\nThe largest relative difference in float32 is {error:.1e}.")


def print_row(name, pair, digits=4):
  """Prints a row of ours and torch's."""
  print(f"| {name} | {pair[0]:.{digits}f} | {pair[1]:.{digits}f} |")


def draw(float32, dropped, path):
  """Draws the curves of both over each other, with and without dropout."""
  figure = matplotlib.figure.Figure(figsize=(8, 3.2), layout="constrained")
  for axes, title, runs in zip(
    figure.subplots(1, 2, sharey=True),
    ("without dropout", f"with dropout, {len(dropped)} seeds"),
    ([float32], dropped),
    strict=True,
  ):
    for number, losses in enumerate(runs):
      names = ("transformers, torch AdamW", "bert_jax")
      if number:
        names = (None, None)
      axes.plot(losses[:, 1], label=names[0], linewidth=2.5, color="tab:orange")
      axes.plot(losses[:, 0], label=names[1], linewidth=0.7, color="black")
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    axes.legend()
  figure.axes[0].set_ylabel("training loss")
  figure.savefig(path, dpi=100)


def main():
  """Runs the comparisons on the embedded text."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=int, default=300)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--num_seeds", type=int, default=3)
  parser.add_argument("--output", type=pathlib.Path, help="a picture, .png")
  flags = parser.parse_args()
  seeds = [flags.seed + i for i in range(flags.num_seeds)]
  with tempfile.TemporaryDirectory() as workdir:
    corpus = open_corpus(prepare(create_config(), workdir))
    float32, bfloat16, dropped = compare_all(corpus, seeds, flags.steps)
  print_table(float32, bfloat16, dropped)
  if flags.output:
    draw(float32, dropped, flags.output)


if __name__ == "__main__":
  main()
