"""Losses of fine-tuning as (sum, weight) pairs; weights count the labels."""

import jax.numpy as jnp
import optax

from bert_jax.finetune.features import IGNORED
from bert_jax.model.bert import NEVER

# Divides the cosines before the softmax over a batch (SimCSE, Gao et al. 2021,
# table D.1; the inverse of sentence-transformers' scale of 20).
TEMPERATURE = 0.05


def cross_entropy(logits, labels):
  """Cross-entropy of one of K: a text's class, a token's tag, an answer's end.

  Args:
    logits: float [..., K].
    labels: int32 [...]; those that are `IGNORED` are left out.

  Returns:
    (sum, weight), both float32 scalars.
  """
  counted = labels != IGNORED
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits, jnp.where(counted, labels, 0)
  )
  return jnp.where(counted, losses, 0).sum(), weight(labels)


def binary_cross_entropy(logits, labels):
  """Binary cross-entropy of each of K labels, summed.

  Args:
    logits: float [B, K].
    labels: float [B, K], 0 or 1.

  Returns:
    (sum, weight), both float32 scalars.
  """
  losses = optax.sigmoid_binary_cross_entropy(logits, labels)
  return losses.sum(), weight(labels)


def squared_error(logits, labels):
  """Squared error of a predicted number.

  Args:
    logits: float [B, 1].
    labels: float [B].

  Returns:
    (sum, weight), both float32 scalars.
  """
  return jnp.square(logits[:, 0] - labels).sum(), weight(labels)


def binary_cross_entropy_of_tokens(logits, labels):
  """Binary cross-entropy at the labelled tokens.

  Args:
    logits: float [B, L, 1].
    labels: int32 [B, L], 0 or 1, or `IGNORED`.

  Returns:
    (sum, weight), both float32 scalars.
  """
  counted = labels != IGNORED
  losses = optax.sigmoid_binary_cross_entropy(logits[..., 0], labels == 1)
  return jnp.where(counted, losses, 0).sum(), weight(labels)


def similarity(vectors, labels):
  """Loss of text pairs: regression on scores, or in-batch negatives.

  Args:
    vectors: float [B, T, D] of T texts.
    labels: float [B], target cosines of the first two texts, whose squared
      error is the loss; or int32 [B], see `in_batch_negatives`.

  Returns:
    (sum, weight), both float32 scalars.
  """
  if jnp.issubdtype(labels.dtype, jnp.integer):
    return in_batch_negatives(vectors, labels)
  unit = _normalize(vectors)
  cosines = (unit[:, 0] * unit[:, 1]).sum(-1)
  return jnp.square(cosines - labels).sum(), weight(labels)


def in_batch_negatives(vectors, groups):
  """Cross-entropy of finding each row's second text among the whole batch's.

  The multiple negatives ranking loss (Henderson et al. 2017); with the same
  text twice, under other dropout, SimCSE's (Gao et al. 2021).

  Args:
    vectors: float [B, T, D]. T is 2, or 3 with a negative text for each row,
      which is a candidate for every row.
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
  """Returns the number of labels that are not `IGNORED`, float32 scalar."""
  if jnp.issubdtype(labels.dtype, jnp.integer):
    return (labels != IGNORED).sum(dtype=jnp.float32)
  return jnp.float32(labels.size)
