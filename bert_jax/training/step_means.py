"""Means of the metrics over several steps, added up on the device.

Nothing is fetched until a row is written, so that no step waits for the host.
"""

import functools

import jax
import jax.numpy as jnp


def add_step(total, metrics):
  """Adds the metrics of one more step.

  Args:
    total: what this function returned for the step before; None at the first
      one.
    metrics: dict of float32 scalars with loss and grad_norm.

  Returns:
    (dict of sums, number of steps), on the device. A step whose loss or
    gradient was not finite, which updates nothing, is left out.
  """
  return _finite_part(metrics) if total is None else _add(total, metrics)


@jax.jit
def _finite_part(metrics):
  """Returns the metrics and 1, or zeros where the step was not finite."""
  finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
  sums = {name: jnp.where(finite, x, 0) for name, x in metrics.items()}
  return sums, finite.astype(jnp.float32)


@functools.partial(jax.jit, donate_argnums=0)
def _add(total, metrics):
  return jax.tree.map(jnp.add, total, _finite_part(metrics))


def fetch_means(total):
  """Returns the means as floats; NaN where no step was finite."""
  sums, steps = jax.device_get(total)
  return {
    name: float(value) / float(steps) if steps else float("nan")
    for name, value in sums.items()
  }
