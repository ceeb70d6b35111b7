"""Losses of fine-tuning as (sum, weight) pairs.

`labels` has an entry for each decision; the weight is their number.
"""

import jax.numpy as jnp
import optax

from bert_jax.finetune.features import IGNORED
from bert_jax.model.bert import NEVER

# By which cosines are divided before the softmax over a batch (SimCSE, Gao et
# al. 2021, table D.1; sentence-transformers' scale of 20).
TEMPERATURE = 0.05


def cross_entropy(logits, labels):
  """One of K: classes of a text, tags of tokens, slots of an answer's ends.

  Args:
    logits: float [..., K].
    labels: int32 [...]; `IGNORED` does not count.

  Returns:
    (sum, weight), both float32 scalars.
  """
  counted = labels != IGNORED
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits, jnp.where(counted, labels, 0)
  )
  return jnp.where(counted, losses, 0).sum(), weight(labels)


def binary_cross_entropy(logits, labels):
  """K times yes or no.

  Args:
    logits: float [B, K].
    labels: float [B, K], 0 or 1.

  Returns:
    (sum, weight), both float32 scalars.
  """
  losses = optax.sigmoid_binary_cross_entropy(logits, labels)
  return losses.sum(), weight(labels)


def squared_error(logits, labels):
  """A number.

  Args:
    logits: float [B, 1].
    labels: float [B].

  Returns:
    (sum, weight), both float32 scalars.
  """
  return jnp.square(logits[:, 0] - labels).sum(), weight(labels)


def binary_cross_entropy_of_tokens(logits, labels):
  """Yes or no at some of the tokens.

  Args:
    logits: float [B, L, 1].
    labels: int32 [B, L], 0 or 1; `IGNORED` does not count.

  Returns:
    (sum, weight), both float32 scalars.
  """
  counted = labels != IGNORED
  losses = optax.sigmoid_binary_cross_entropy(logits[..., 0], labels == 1)
  return jnp.where(counted, losses, 0).sum(), weight(labels)


def similarity(vectors, labels):
  """Cosines of pairs: as they are scored, or higher than those of others.

  Args:
    vectors: float [B, T, D] of T texts.
    labels: float [B], the cosine of the first two texts that is wanted; or
      int32 [B], see `in_batch_negatives`.

  Returns:
    (sum, weight), both float32 scalars.
  """
  if jnp.issubdtype(labels.dtype, jnp.integer):
    return in_batch_negatives(vectors, labels)
  unit = _normalize(vectors)
  cosines = (unit[:, 0] * unit[:, 1]).sum(-1)
  return jnp.square(cosines - labels).sum(), weight(labels)


def in_batch_negatives(vectors, groups):
  """Finds the second text of each row among those of the whole batch.

  The multiple negatives ranking loss (Henderson et al. 2017); with the same
  text twice, under other dropout, SimCSE's (Gao et al. 2021).

  Args:
    vectors: float [B, T, D], T 2, or 3 with a text that the second is to be
      told from; that is among the candidates too.
    groups: int32 [B]; rows of one group are not each other's negatives.

  Returns:
    (sum, weight), both float32 scalars.
  """
  unit = _normalize(vectors)
  candidates = unit[:, 1:].swapaxes(0, 1).reshape(-1, unit.shape[-1])
  scores = jnp.matmul(unit[:, 0], candidates.T, precision="highest")
  own = jnp.arange(len(groups))
  same = groups[:, None] == groups[None]
  hidden = same & (own[:, None] != own[None])
  hidden = jnp.tile(hidden, (1, vectors.shape[1] - 1))
  scores = jnp.where(hidden, NEVER, scores / TEMPERATURE)
  losses = optax.softmax_cross_entropy_with_integer_labels(scores, own)
  return losses.sum(), weight(groups)


def _normalize(vectors):
  vectors = vectors.astype(jnp.float32)
  square = jnp.square(vectors).sum(-1, keepdims=True)
  return vectors / jnp.sqrt(square + 1e-12)


def weight(labels):
  """Returns how many entries of the labels count, float32 scalar."""
  if jnp.issubdtype(labels.dtype, jnp.integer):
    return (labels != IGNORED).sum(dtype=jnp.float32)
  return jnp.float32(labels.size)
