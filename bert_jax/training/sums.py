"""Sums of a batch: losses and accuracies as (sum, weight) pairs.

Sums add up over devices, micro-batches and batches; the division happens once,
at the end. A mean per device would weight a masked token by how few others its
device holds.
"""

import jax
import jax.numpy as jnp


def add(total, sums):
  """Adds (sum, weight) pairs of one more batch.

  Args:
    total: dict of (sum, weight) so far, or None at the first batch.
    sums: dict of (sum, weight), same names.

  Returns:
    dict of (sum, weight).
  """
  return sums if total is None else jax.tree.map(jnp.add, total, sums)


def divide(pair):
  """Turns a (sum, weight) pair into a mean; 0 where nothing was counted."""
  total, weight = pair
  return total / jnp.where(weight > 0, weight, 1)


def mean_metrics(sums, loss_names):
  """Turns sums of a global batch (or of several) into reported means.

  Args:
    sums: dict of (sum, weight), as `Objective.sums` makes it.
    loss_names: iterable of the names whose sum is the loss.

  Returns:
    dict of float32 scalars, with `loss`, the sum of the losses.
  """
  metrics = {name: divide(pair) for name, pair in sums.items()}
  metrics["loss"] = sum(metrics[name] for name in loss_names)
  return metrics
