"""How a broken run looks: a fault in each of several small runs.

Each is trained from scratch on made-up text, on which a small model learns to
use context within a minute, but for one that takes the healthy run's weights;
and each is measured on held-out text without the fault. Prints a table of the
figures in Markdown, a few minutes on two CPU cores:

    JAX_PLATFORMS=cpu python -m tests.broken_runs
"""

import argparse
import dataclasses
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.config import default_config, validate
from bert_jax.data.corpus import open_corpus, split_documents
from bert_jax.data.mixing import training_documents
from bert_jax.data.preparation import prepare
from bert_jax.data.tokenization import SPECIAL_TOKENS
from bert_jax.data.word_frequency import count_tokens, frequency_loss
from bert_jax.pretraining import evaluation, objective
from bert_jax.pretraining import run as run_lib
from bert_jax.training import step as step_lib
from bert_jax.training.optimizer import create_schedule
from tests import texts

# Steps whose gradient norms are averaged, the last ones of a run.
_LAST_STEPS = 50
_COLUMNS = {
  "masked-LM loss": "mlm_loss",
  "frequent": "mlm_loss_frequent",
  "medium": "mlm_loss_medium",
  "rare": "mlm_loss_rare",
  "accuracy at [MASK]": "mlm_accuracy_masked",
  "random": "mlm_accuracy_random",
  "kept": "mlm_accuracy_kept",
  "gradient norm": "grad_norm",
}


def create_config(source, steps):
  """Returns the settings of the healthy run: two layers of 64."""
  config = default_config()
  config.update_from_flattened_dict(
    {
      "model.hidden_size": 64,
      "model.num_hidden_layers": 2,
      "model.num_attention_heads": 2,
      "model.intermediate_size": 256,
      "model.initializer_range": 0.1,
      "model.hidden_dropout_prob": 0.0,
      "model.attention_probs_dropout_prob": 0.0,
      "model.dtype": "float32",
      "corpus.source": source,
      "corpus.vocab_size": 160,
      "corpus.eval_fraction": 0.05,
      "phase1.max_seq_length": 32,
      "phase1.num_steps": steps,
      "phase1.batch_size": 64,
      "phase2.num_steps": 0,
      "optimizer.learning_rate": 4e-3,
      "optimizer.warmup_steps": 50,
      "eval.num_batches": 20,
    }
  )
  validate(config)
  return config


def roll_masked_lm_labels(inputs):
  """Gives each sequence of a batch the masked tokens of the one before."""
  ids = jnp.roll(inputs["masked_lm_ids"], 1, axis=0)
  return inputs | {"masked_lm_ids": ids}


def reorder(values, num_fixed=0):
  """Returns an array in a random order, but for the first entries."""
  rest = np.random.default_rng(0).permutation(values[num_fixed:])
  return np.concatenate([values[:num_fixed], rest])


def train(run, spoil_inputs=lambda inputs: inputs):
  """Trains a run from fresh weights.

  Args:
    run: `Run`.
    spoil_inputs: function of the masked inputs to those trained on.

  Returns:
    (parameters, dict of the held-out figures and `grad_norm`).
  """
  config, state = run.config, run_lib.create_state(run)
  sound = objective.create_objective(
    config, config.phase1, run.bert_config, run.masking_vocab
  )
  step = step_lib.make_train_step(
    config,
    dataclasses.replace(
      sound,
      make_inputs=lambda key, batch: spoil_inputs(
        sound.make_inputs(key, batch)
      ),
    ),
    run.optimizer,
    create_schedule(config.optimizer, config.phase1.num_steps),
    run.mesh,
    state,
  )
  examples = run_lib.training_examples(run, "phase1")
  size = config.phase1.batch_size
  norms = []
  for number in range(config.phase1.num_steps):
    batch = examples.batch(number * size + np.arange(size))
    state, metrics = step(state, batch)
    norms.append(metrics["grad_norm"])
  figures = evaluate(run, state.params)
  norm = np.mean(jax.device_get(norms[-_LAST_STEPS:]))
  return state.params, figures | {"grad_norm": norm}


def evaluate(run, params):
  """Returns the held-out figures of weights, and what they were read with."""
  training = training_documents(run.config.corpus, run.corpus)
  counts = count_tokens(run.corpus, training)
  figures = evaluation.make_evaluate(run, "phase1", params)(params)
  return figures | {"commonest": run.corpus.vocab[int(counts.argmax())]}


def iterate_runs(config, corpus):
  """Trains the healthy run and those with a fault.

  Args:
    config: see `create_config`.
    corpus: `Corpus`.

  Yields:
    (name of the run, its figures), as each is done.
  """
  run = run_lib.create_run(config, corpus)
  params, figures = train(run)
  yield "healthy", figures
  _, figures = train(run, spoil_inputs=roll_masked_lm_labels)
  yield "masked-LM labels shuffled", figures
  vocab = [str(token) for token in reorder(np.array(corpus.vocab))]
  other = dataclasses.replace(corpus, vocab=vocab)
  _, figures = train(run_lib.create_run(config, other))
  yield "`vocab.txt` in another order", figures
  new_ids = reorder(np.arange(len(corpus.vocab)), len(SPECIAL_TOKENS))
  tokens = new_ids[corpus.tokens].astype(corpus.tokens.dtype)
  other = dataclasses.replace(corpus, tokens=tokens)
  figures = evaluate(run_lib.create_run(config, other), params)
  yield "healthy weights, text encoded by another `vocab.txt`", figures
  config = config.copy_and_resolve_references()
  config.optimizer.learning_rate *= 10
  _, figures = train(run_lib.create_run(config, corpus))
  yield "learning rate times ten", figures


def print_row(name, figures):
  """Prints the figures of a run as a row of a table in Markdown."""
  values = [figures.get(key) for key in _COLUMNS.values()]
  cells = ["" if value is None else f"{value:.3f}" for value in values]
  commonest = f"`{figures['commonest']}`"
  print("|", " | ".join([name, *cells, commonest]), "|", flush=True)


def main():
  """Runs the comparison."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=int, default=600)
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    source = pathlib.Path(folder) / "made_up.txt"
    texts.write_text(source, texts.make_documents(400, 20))
    config = create_config(str(source), flags.steps)
    corpus = open_corpus(prepare(config, folder))
    _, held_out = split_documents(corpus.documents, config.corpus.eval_fraction)
    training = training_documents(config.corpus, corpus)
    guess = frequency_loss(corpus, training, held_out)
    columns = ["run", *_COLUMNS, "commonest token"]
    print("|", " | ".join(columns), "|")
    print("|---" * len(columns) + "|")
    for name, figures in iterate_runs(config, corpus):
      print_row(name, figures)
  print(f"\nGuessing by word frequency alone scores {guess:.3f}.")


if __name__ == "__main__":
  main()
