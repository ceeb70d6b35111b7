"""Held-out figures of parts of the predictions, to see what a model has learnt.

Masked-LM figures by what the model sees at the position ([MASK], a random
token, or the token itself) and by how frequent the token is; next-sentence
figures by the length of the pair. Sums of a batch, made on the device.

Shapes: `B` batch, `K` predictions a sequence, `L` length, `V` vocabulary.
"""

import jax.numpy as jnp
import numpy as np

from bert_jax.data.word_frequency import count_tokens
from bert_jax.pretraining import losses

SEEN = ("masked", "random", "kept")
FREQUENCIES = ("frequent", "medium", "rare")
LENGTHS = ("short", "medium", "long")
# Tokens of the training text that are counted, and in how many runs of
# documents, spread evenly over it. A run touches a shard of the corpus, which a
# host may have to copy first.
_COUNTED_TOKENS = 2**24
_NUM_RUNS = 16


def create_frequency_bands(corpus, documents):
  """Parts the vocabulary by frequency, a third of the text in each band.

  Args:
    corpus: `Corpus`.
    documents: `DOCUMENT` [N], the training side; a sample of it is counted
      where it is large.

  Returns:
    int8 [V], the number of each token's band in `FREQUENCIES`.
  """
  tokens = documents["num_tokens"].sum(dtype=np.int64)
  place = np.arange(len(documents)) * (_NUM_RUNS / len(documents))
  sample = documents[place % 1 <= _COUNTED_TOKENS / tokens]
  return part_by_frequency(count_tokens(corpus, sample))


def part_by_frequency(counts):
  """Parts tokens into three bands, from the most frequent to the rarest.

  Args:
    counts: int [V], how often each token occurs.

  Returns:
    int8 [V]: a token's band is the third of the text in which its occurrences
    begin when all are put in the order of frequency.
  """
  order = np.argsort(-counts, kind="stable")
  before = np.cumsum(counts[order]) - counts[order]
  bands = np.empty(len(counts), np.int8)
  # What never occurs comes last and is rare.
  bands[order] = np.minimum(3 * before // max(counts.sum(), 1), 2)
  return bands


def diagnostic_sums(mlm_logits, nsp_logits, inputs, frequency_bands, mask_id):
  """Adds up losses and accuracies of each part of a batch.

  Args:
    mlm_logits: float [B, K, V].
    nsp_logits: float [B, 2].
    inputs: dict of the model's inputs and labels, see
      `objective.create_objective`.
    frequency_bands: int8 [V], see `create_frequency_bands`.
    mask_id: id of [MASK].

  Returns:
    dict of (sum, weight): mlm_loss_PART and mlm_accuracy_PART for the parts of
    `SEEN` and `FREQUENCIES`, nsp_accuracy_PART and nsp_base_rate_PART, the
    share of "random" labels, for those of `LENGTHS`.
  """
  return _masked_lm_sums(
    mlm_logits, inputs, jnp.asarray(frequency_bands), mask_id
  ) | _next_sentence_sums(nsp_logits, inputs)


def _masked_lm_sums(logits, inputs, frequency_bands, mask_id):
  ids, weights = inputs["masked_lm_ids"], inputs["masked_lm_weights"]
  seen = jnp.take_along_axis(
    inputs["input_ids"], inputs["masked_lm_positions"], axis=1
  )
  # A random token may be the one that it replaces, where that is allowed: what
  # counts is what the model sees.
  kind = jnp.where(seen == mask_id, 0, jnp.where(seen == ids, 2, 1))
  sums = {}
  for names, part in ((SEEN, kind), (FREQUENCIES, frequency_bands[ids])):
    for number, name in enumerate(names):
      of_part = ids, weights * (part == number)
      sums[f"mlm_loss_{name}"] = losses.masked_lm_loss(logits, *of_part)
      sums[f"mlm_accuracy_{name}"] = losses.masked_lm_accuracy(logits, *of_part)
  return sums


def _next_sentence_sums(logits, inputs):
  labels, mask = inputs["next_sentence_labels"], inputs["attention_mask"]
  right = logits.argmax(-1) == labels
  # Up to a third of the slots, up to two thirds, and more.
  band = (3 * mask.sum(1) - 1) // mask.shape[1]
  sums = {}
  for number, name in enumerate(LENGTHS):
    weights = (band == number).astype(jnp.float32)
    sums[f"nsp_accuracy_{name}"] = (right * weights).sum(), weights.sum()
    sums[f"nsp_base_rate_{name}"] = (labels * weights).sum(), weights.sum()
  return sums
