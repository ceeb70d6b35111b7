"""Fills every [MASK] of texts by any pretrained model, without torch."""

import functools

import jax
import numpy as np

from bert_jax.errors import UserError
from bert_jax.inference import batching
from bert_jax.inference.pretraining_heads import MASKED_LM, load_model

_BATCH_SIZE = 16


def fill_masks(model, texts, num_fillings=5):
  """Predicts every [MASK] of some texts.

  Args:
    model: `PretrainingModel`.
    texts: list of str, each with a [MASK].
    num_fillings: how many to return for each.

  Returns:
    a list for each text, of a list for each [MASK], of (token, probability),
    best first.

  Raises:
    UserError: there is no [MASK] in a text, or it is too long.
  """
  mask_id = model.tokenizer.token_to_id("[MASK]")
  rows = [model.encode(text) for text in texts]
  places = [np.flatnonzero(row.ids == mask_id) for row in rows]
  for text, found in zip(texts, places, strict=True):
    if not len(found):
      raise UserError(f"there is no [MASK] in {text!r}; expected one to fill")

  @functools.partial(jax.jit, static_argnums=5)
  def step(params, ids, a_length, length, positions, count):
    logits, _ = model.apply(params, ids, a_length, length, positions)
    return jax.lax.top_k(jax.nn.softmax(logits), count)

  results = [None] * len(rows)
  count = min(num_fillings, len(model.vocab))
  batch_size = min(_BATCH_SIZE, batching.round_up(len(rows)))
  for chosen, batch in batching.iterate_batches(
    rows, batch_size, model.max_length
  ):
    most = batching.round_up(max(len(places[i]) for i in chosen))
    positions = np.zeros((batch_size, most), np.int32)
    for slot, i in enumerate(chosen):
      positions[slot, : len(places[i])] = places[i]
    found = jax.device_get(step(model.params, *batch, positions, count))
    for slot, i in enumerate(chosen):
      results[i] = [
        [(model.vocab[t], float(p)) for p, t in zip(*best, strict=True)]
        for best in zip(
          *(x[slot, : len(places[i])] for x in found), strict=True
        )
      ]
  return results


def iterate_fillings(source, rows, num_fillings):
  """Fills the rows of a file.

  Args:
    source: see `load_model`.
    rows: iterable of (text, None).
    num_fillings: how many for each [MASK].

  Yields:
    dict of text and masks: for each [MASK] a list of dicts with token and
    probability.

  Raises:
    UserError: see `load_model` and `fill_masks`.
  """
  model = load_model(source, MASKED_LM)
  for texts in batching.chunks(text for text, _ in rows):
    for text, masks in zip(
      texts, fill_masks(model, texts, num_fillings), strict=True
    ):
      yield {
        "text": text,
        "masks": [
          [{"token": token, "probability": p} for token, p in best]
          for best in masks
        ],
      }
