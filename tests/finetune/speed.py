"""How fast fine-tuning and embedding are, beside torch, in one run.

    python -m tests.finetune.speed --init=H --rounds=5 --steps=40 \\
      --config=configs/finetune_glue.py:sst2 \\
      --config.data.train=train.tsv --config.data.dev=dev.tsv

Takes turns, round by round, so that a machine that others use slows down all
alike: steps of bert_jax with batches of a few lengths, the same padded to one
length, and torch's loop on transformers' model with batches padded to their
longest row; the same three for predictions of the held-out rows; then
bert_jax's `embed` and SentenceTransformer.encode on the held-out texts.
Compilation is not counted. Prints a JSON line for each, with the seconds of
every round and the median of the ratios to the first one.
"""

import datetime
import functools
import itertools
import json
import statistics
import time

import jax
import numpy as np
import sentence_transformers
import torch
from absl import flags

from bert_jax import command
from bert_jax.finetune import model as model_lib
from bert_jax.finetune import run as run_lib
from bert_jax.finetune import stage as stage_lib
from bert_jax.finetune.config import default_config, validate
from bert_jax.inference import embedding
from bert_jax.sharding import rows as rows_lib
from bert_jax.weights.pretrained import load_init
from tests.finetune import torch_finetune

_EMBED_BATCH_SIZE = 64


def make_ours(config, init, num_lengths):
  """Builds the timed work of bert_jax.

  Args:
    config: settings as of bert_jax.finetune.
    init: Hugging Face folder.
    num_lengths: how many lengths the batches have.

  Returns:
    Function of a number of steps, which takes so many more.
  """
  config = config.copy_and_resolve_references()
  config.data.num_lengths = num_lengths
  run = run_lib.create_fine_tuning(config, init)
  state = run_lib.create_state(run)
  stage = stage_lib.create_stage(run, state, evaluate=None)
  mesh = run.model.mesh
  for shapes in stage.abstract_batches:  # compiles each
    batch = {k: np.zeros(s.shape, s.dtype) for k, s in shapes.items()}
    batch["length"] += 3
    batch["a_length"] += 1
    state, _ = stage.train_step(state, rows_lib.global_batch(mesh, batch))
  jax.block_until_ready(state)
  batches = stage.iterate_batches(0)

  def take(num_steps):
    nonlocal state
    for batch in itertools.islice(batches, num_steps):
      batch = rows_lib.global_batch(mesh, batch)
      # One step at a time, as the loop does on a CPU.
      state, _ = jax.block_until_ready(stage.train_step(state, batch))

  take(1)  # imports TensorFlow
  return take


def make_torch(config, init):
  """Builds the timed work of torch; same result as `make_ours`."""
  run = run_lib.create_fine_tuning(config, init)
  kind, labels = run.model.kind, run.train.arrays["labels"]
  model = torch_finetune.create_model(kind, init, run.model.labels, config)
  batches = torch_finetune.iterate_rows(run.train, run.config, run.num_steps)
  losses = torch_finetune.iterate_losses(
    model, kind, run.train, labels, run.config, batches, run.num_steps
  )
  next(losses)

  def take(num_steps):
    for _ in itertools.islice(losses, num_steps):
      pass

  return take


def make_predictors(config, init):
  """Builds three ways to predict the held-out rows with a fresh output layer.

  Returns:
    dict of name to a function without arguments that predicts all rows.
  """
  work = {}
  for name, num_lengths in (
    ("predict, bert_jax", config.data.num_lengths),
    ("predict, bert_jax, one length", 1),
  ):
    changed = config.copy_and_resolve_references()
    changed.data.num_lengths = num_lengths
    run = run_lib.create_fine_tuning(changed, init)
    params, _ = model_lib.create_params(run.model)
    predict = model_lib.make_predict(run.model, params)
    work[name] = functools.partial(predict, params, run.dev)
    work[name]()  # compiles
  model = torch_finetune.create_model(
    run.model.kind, init, run.model.labels, config
  )
  work["predict, torch"] = functools.partial(
    torch_finetune.predict, model, run.model.kind, run.dev, config
  )
  return work


def make_embedders(config, init):
  """Builds both ways to embed the held-out texts.

  Returns:
    dict of name to a function without arguments that embeds all texts.
  """
  run = run_lib.create_fine_tuning(config, init)
  texts = [text for row in run.dev_rows for text in row.texts]
  theirs = sentence_transformers.SentenceTransformer(init, device="cpu")
  embedder = embedding.create_embedder(
    load_init(init), "last", None, theirs.max_seq_length, _EMBED_BATCH_SIZE
  )

  def ours():
    rows = embedding.embed_rows(embedder, ((text, None) for text in texts))
    return np.stack([row.vectors for row in rows])

  def peer():
    return theirs.encode(texts, batch_size=_EMBED_BATCH_SIZE)

  difference = np.abs(ours() - peer()).max()
  print(f"embed: {len(texts):,} texts, largest difference {difference:.1e}")
  return {"embed, bert_jax": ours, "embed, sentence-transformers": peer}


def time_in_turns(contestants, rounds):
  """Times each contestant once a round.

  Args:
    contestants: dict of name to a function without arguments.
    rounds: int.

  Returns:
    dict of name to the seconds of each round.
  """
  seconds = {name: [] for name in contestants}
  for number in range(rounds):
    for name, work in contestants.items():
      started = time.perf_counter()
      work()
      seconds[name].append(time.perf_counter() - started)
    latest = {name: round(values[-1], 3) for name, values in seconds.items()}
    print(f"round {number + 1}, seconds: {latest}", flush=True)
  return seconds


def _report(seconds):
  """Prints the seconds, and how often the first one's fit into the others'."""
  first = next(iter(seconds))
  for name, of_rounds in seconds.items():
    ratios = [b / a for a, b in zip(seconds[first], of_rounds, strict=True)]
    row = {
      "figure": name,
      "seconds": round(statistics.median(of_rounds), 3),
      "by_round": [round(value, 3) for value in of_rounds],
      f"times {first}": round(statistics.median(ratios), 2),
      "device": jax.devices()[0].device_kind,
      "torch_threads": torch.get_num_threads(),
      "date": datetime.date.today().isoformat(),
    }
    print(json.dumps(row), flush=True)


def main(argv):
  """Runs the command."""
  del argv
  args, config = flags.FLAGS, command.config()
  validate(config)
  takes = {
    "finetune, bert_jax": make_ours(config, args.init, config.data.num_lengths),
    "finetune, bert_jax, one length": make_ours(config, args.init, 1),
    "finetune, torch": make_torch(config, args.init),
  }
  work = {
    name: functools.partial(take, args.steps) for name, take in takes.items()
  }
  _report(time_in_turns(work, args.rounds))
  _report(time_in_turns(make_predictors(config, args.init), args.rounds))
  _report(time_in_turns(make_embedders(config, args.init), args.rounds))


if __name__ == "__main__":
  command.define_config_flag()
  flags.DEFINE_string("init", None, "Hugging Face folder.")
  flags.DEFINE_integer("rounds", 5, "Turns of each.")
  flags.DEFINE_integer("steps", 40, "Steps of a turn.")
  command.run(main, default_config)
