"""Describes training examples: masked text, segments, label and origin."""

import jax
import numpy as np

from bert_jax.config import PHASES, active_phases
from bert_jax.data import corpus_cache
from bert_jax.data.examples import Examples
from bert_jax.data.mixing import training_documents
from bert_jax.model.bert import create_bert_config
from bert_jax.pretraining.masking import create_masking_vocab
from bert_jax.pretraining.objective import create_objective
from bert_jax.storage import workdir as workdir_lib

_LABELS = ("IsNext", "NotNext")


def describe_examples(config, workdir, num_examples):
  """Describes the first examples of the first batch of each phase.

  The masks are those of that train step.

  Args:
    config: validated settings of a run whose corpus is prepared.
    workdir: its folder.
    num_examples: examples of each phase, at most one batch.

  Returns:
    list of str, one for each example, of several lines.

  Raises:
    UserError: there is no prepared corpus.
  """
  directory = workdir_lib.corpus_dir(config, workdir)
  corpus = corpus_cache.open_corpus(directory)
  documents = training_documents(config.corpus, corpus)
  found = []
  step = 0
  for name in active_phases(config):
    phase = config[name]
    examples = Examples(
      corpus,
      documents,
      phase.max_seq_length,
      config.seed,
      stream=PHASES.index(name),
    )
    indices = np.arange(phase.batch_size)
    batch, pairs = examples.batch(indices), examples.pairs(indices)
    objective = create_objective(
      config,
      phase,
      create_bert_config(config, len(corpus.vocab)),
      create_masking_vocab(corpus.vocab),
    )
    inputs = objective.make_inputs(inputs_key(config.seed, step), batch)
    inputs = {key: np.asarray(value) for key, value in inputs.items()}
    found += [
      _describe(name, row, corpus, examples, batch, pairs, inputs)
      for row in indices[:num_examples]
    ]
    step += phase.num_steps
  return found


def inputs_key(seed, step):
  """Returns the key of a step's masks, as `training.step` derives it."""
  key = jax.random.fold_in(jax.random.key(seed), step)
  return jax.random.split(key)[0]


def _describe(name, row, corpus, examples, batch, pairs, inputs):
  """Returns the lines of one example."""
  length = batch["length"][row]
  tokens = [corpus.vocab[i] for i in inputs["input_ids"][row, :length]]
  segments = inputs["token_type_ids"][row, :length]
  label = _LABELS[batch["next_sentence_labels"][row]]
  lines = [
    f"{name} example {row}: {label}, {length} of "
    f"{inputs['input_ids'].shape[1]} tokens"
  ]
  for number, segment in enumerate("ab"):
    start = getattr(pairs, f"{segment}_start")[row]
    document = examples.documents[getattr(pairs, f"{segment}_document")[row]]
    entry = corpus.manifest["entries"][document["source"]]["spec"]
    begin = start - document["start"]
    end = begin + getattr(pairs, f"{segment}_length")[row]
    text = [t for t, s in zip(tokens, segments, strict=True) if s == number]
    lines += [
      f"  {segment.upper()} from {entry}, document {document['hash']:016x}, "
      f"tokens {begin} to {end} of {document['num_tokens']}:",
      f"    {join_pieces(text)}",
    ]
  used = inputs["masked_lm_weights"][row] > 0
  chosen = [
    f"{position} {corpus.vocab[token]!r} as {tokens[position]!r}"
    for position, token in zip(
      inputs["masked_lm_positions"][row, used],
      inputs["masked_lm_ids"][row, used],
      strict=True,
    )
  ]
  return "\n".join([*lines, f"  to predict: {', '.join(chosen)}"])


def join_pieces(tokens):
  """Returns tokens as text: "##" pieces joined to what precedes them."""
  return " ".join(tokens).replace(" ##", "")
