"""The numbers that no refactoring may change: examples, masks, first losses.

A run that is resumed draws its examples, masks and dropout anew from
(seed, phase, step, row). Whoever changes how they are drawn breaks the resume
of every run that exists, and so must mean to. This module computes such
numbers at seed 0, and `tests/golden.json` holds them. To renew them, once the
decision is made:

    JAX_PLATFORMS=cpu python -m tests.golden
"""

import json
import pathlib

import jax
import numpy as np

from bert_jax.config import default_config
from bert_jax.data import corpus as corpus_lib
from bert_jax.data.examples import Examples
from bert_jax.data.tokenization import SPECIAL_TOKENS
from bert_jax.model.bert import create_bert_config, create_params
from bert_jax.model.dropout import (
  draw_attention_keep,
  draw_keep,
  draw_seeds,
)
from bert_jax.pretraining import objective as objective_lib
from bert_jax.pretraining.masking import create_masking_vocab, mask_tokens
from bert_jax.sharding import mesh as mesh_lib
from bert_jax.training.optimizer import create_optimizer, create_schedule
from bert_jax.training.step import make_train_step
from bert_jax.training.train_state import create_train_state

PATH = pathlib.Path(__file__).with_name("golden.json")
# Every third piece goes on with a word.
VOCAB = [
  *SPECIAL_TOKENS,
  *(f"##w{i}" if i % 3 == 2 else f"w{i}" for i in range(195)),
]
NUM_STEPS = 3


def make_corpus():
  """Makes 40 documents of 1 to 40 sentences of 1 to 30 tokens."""
  rng = np.random.default_rng(0)
  records = np.zeros(40, corpus_lib.DOCUMENT)
  starts, num_tokens = [], 0
  for record in records:
    lengths = rng.integers(1, 31, rng.integers(1, 41))
    record["start"], record["num_tokens"] = num_tokens, lengths.sum()
    record["first_sentence"] = len(starts)
    record["num_sentences"] = len(lengths)
    starts += [0, *np.cumsum(lengths)[:-1]]
    num_tokens += int(lengths.sum())
  ids = rng.integers(len(SPECIAL_TOKENS), len(VOCAB), num_tokens)
  return corpus_lib.Corpus(
    vocab=VOCAB,
    tokens=ids.astype(np.uint16),
    sentence_starts=np.array(starts, np.uint32),
    documents=records,
    manifest={},
  )


def compute():
  """Returns every golden value, a dict of name to nested lists."""
  corpus = make_corpus()
  return {
    **_examples(corpus),
    **_masks(corpus),
    "kept by dropout": _dropout(),
    "kept by attention dropout": _attention_dropout(),
    "losses": _losses(corpus),
  }


def _examples(corpus):
  """Two rows of three passes for both lengths, and the order of 20 rows."""
  found = {}
  for stream, length in enumerate((128, 512)):
    examples = Examples(corpus, corpus.documents, length, 0, stream)
    in_a_pass = examples.examples_per_pass
    for number in range(3):
      indices = number * in_a_pass + np.arange(2)
      batch = examples.batch(indices)
      found[f"length {length}, pass {number}"] = {
        name: values.tolist() for name, values in batch.items()
      }
    starts = examples.pairs(np.arange(20)).a_start
    found[f"length {length}, order"] = starts.tolist()
  return found


def _masks(corpus):
  examples = Examples(corpus, corpus.documents, 64, 0, 0)
  batch = examples.batch(np.arange(3))
  found = {}
  for whole_word in (False, True):
    masked = mask_tokens(
      jax.random.key(0),
      batch["input_ids"].astype(np.int32),
      batch["length"],
      create_masking_vocab(VOCAB),
      rate=0.15,
      mask_prob=0.8,
      random_prob=0.1,
      random_token="different",
      whole_word=whole_word,
      max_predictions=10,
    )
    name = "masks of whole words" if whole_word else "masks"
    found[name] = {key: np.asarray(x).tolist() for key, x in masked.items()}
  return found


def _dropout():
  """Two masks of two rows, as 0 and 1."""
  seeds = draw_seeds(jax.random.key(0), 2, 2)
  kept = [draw_keep(one, 0.1, (2, 8, 16)) for one in seeds]
  return np.asarray(kept, np.int32).reshape(2, 2, -1).tolist()


def _attention_dropout():
  """A mask of two rows, three heads and eight positions, as 0 and 1."""
  (seeds,) = draw_seeds(jax.random.key(0), 1, 2)
  kept = draw_attention_keep(seeds, 0.1, 3, 8)
  return np.asarray(kept, np.int32).reshape(2, 3, -1).tolist()


def _losses(corpus):
  """The first losses of a tiny run in float32, dropout and all."""
  config = default_config()
  config.update_from_flattened_dict(
    {
      "model.hidden_size": 32,
      "model.num_hidden_layers": 2,
      "model.num_attention_heads": 4,
      "model.intermediate_size": 64,
      "model.max_position_embeddings": 64,
      "model.dtype": "float32",
      "phase1.max_seq_length": 64,
      "phase1.batch_size": 8,
      "phase1.max_predictions": 10,
      "optimizer.learning_rate": 1e-2,
      "optimizer.warmup_steps": 2,
    }
  )
  bert_config = create_bert_config(config, len(VOCAB))
  schedule = create_schedule(config.optimizer, 10)
  optimizer = create_optimizer(config.optimizer, 10)
  state = create_train_state(
    create_params(bert_config, jax.random.key(0)), optimizer
  )
  mesh = mesh_lib.create_mesh(config.mesh, jax.devices()[:1])
  objective = objective_lib.create_objective(
    config, config.phase1, bert_config, create_masking_vocab(VOCAB)
  )
  step = make_train_step(config, objective, optimizer, schedule, mesh, state)
  examples = Examples(corpus, corpus.documents, 64, config.seed, 0)
  losses = []
  for number in range(NUM_STEPS):
    rows = number * config.phase1.batch_size + np.arange(8)
    state, metrics = step(state, examples.batch(rows))
    losses.append(float(metrics["loss"]))
  return losses


if __name__ == "__main__":
  values = {name: json.dumps(value) for name, value in compute().items()}
  lines = (f"{json.dumps(name)}: {value}" for name, value in values.items())
  PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")
