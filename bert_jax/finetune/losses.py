"""Losses of fine-tuning as (sum, weight) pairs.

`labels` has an entry for each decision; the weight is their number.
"""

import jax.numpy as jnp
import optax

from bert_jax.finetune.features import IGNORED


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


def weight(labels):
  """Returns how many entries of the labels count, float32 scalar."""
  if jnp.issubdtype(labels.dtype, jnp.integer):
    return (labels != IGNORED).sum(dtype=jnp.float32)
  return jnp.float32(labels.size)
