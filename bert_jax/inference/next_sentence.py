"""How likely one text follows another: the next-sentence head."""

import jax
import numpy as np

from bert_jax.errors import UserError
from bert_jax.inference import batching
from bert_jax.inference.pretraining_heads import NEXT_SENTENCE, load_model

_BATCH_SIZE = 16


def judge_pairs(model, pairs):
  """Returns the probabilities that B follows A.

  Args:
    model: `PretrainingModel`.
    pairs: list of (A, B), str.

  Returns:
    list of float.

  Raises:
    UserError: a pair is too long.
  """
  rows = [model.encode(a, b) for a, b in pairs]

  @jax.jit
  def step(params, ids, a_length, length):
    # The masked-LM head needs positions; its output is not used.
    first = np.zeros((len(ids), 1), np.int32)
    _, logits = model.apply(params, ids, a_length, length, first)
    return jax.nn.softmax(logits)[:, 0]

  results = [None] * len(rows)
  batch_size = min(_BATCH_SIZE, batching.round_up(len(rows)))
  for chosen, batch in batching.iterate_batches(
    rows, batch_size, model.max_length
  ):
    found = np.asarray(step(model.params, *batch))
    for i, probability in zip(chosen, found, strict=False):
      results[i] = float(probability)
  return results


def iterate_judgements(source, rows):
  """Judges the pairs of a file.

  Args:
    source: see `pretraining_heads.load_model`.
    rows: iterable of (text, second text); where that is None, a tab in the
      text parts the two.

  Yields:
    dict of text, next and probability.

  Raises:
    UserError: a row is no pair, or too long.
  """
  model = load_model(source, NEXT_SENTENCE)
  for chunk in batching.chunks(map(_pair, rows)):
    for (a, b), p in zip(chunk, judge_pairs(model, chunk), strict=True):
      yield {"text": a, "next": b, "probability": p}


def _pair(row):
  text, pair = row
  parts = (text, pair) if pair is not None else tuple(text.split("\t"))
  if len(parts) != 2:
    raise UserError(
      f"{text[:60]!r} is {len(parts)} texts; expected two, parted by a tab, or "
      "text and text_pair in JSON lines"
    )
  return parts
