"""Dropout, and the random bits that suit the device it runs on.

Either kind of bits depends on the key and an entry's place in the global
array alone, so that a mask is the same on every mesh.
"""

import jax
import jax.numpy as jnp
import numpy as np


def dropout(x, rate, key):
  """Zeroes entries at random and scales the others up to keep the mean.

  Args:
    x: float, any shape.
    rate: probability of a zero, 0 <= rate < 1.
    key: PRNG key, or None for no dropout.

  Returns:
    Like `x`.
  """
  if key is None or rate == 0:
    return x
  keep = jax.lax.platform_dependent(
    key,
    tpu=lambda key: hashed_keep(key, rate, x.shape),
    default=lambda key: jax.random.bernoulli(key, 1 - rate, x.shape),
  )
  return jnp.where(keep, x / (1 - rate), 0)


def hashed_keep(key, rate, shape):
  """Draws which entries to keep by hashing their indices.

  Two rounds of multiply and shift an entry, where Threefry takes twenty.

  The rounds are those of Wellons' lowbias32 (2018, "Prospecting for Hash
  Functions"), with words of the key and the row between them: rows of two
  different keys or indices are no permutations of each other.

  Args:
    key: PRNG key.
    rate: probability of False.
    shape: tuple of int; less than 2**32 entries behind the first dimension.

  Returns:
    bool, `shape`.
  """
  words = jax.random.key_data(key)
  row = jax.lax.broadcasted_iota(
    jnp.uint32, (shape[0],) + (1,) * (len(shape) - 1), 0
  )
  first = _mix(row ^ words[0], words[1])
  second = _mix(first ^ words[1], words[0])
  place = jnp.zeros((1,) * len(shape), jnp.uint32)
  for i in range(1, len(shape)):
    index = jax.lax.broadcasted_iota(jnp.uint32, (1, *shape[1:]), i)
    place = place + index * np.uint32(np.prod(shape[i + 1 :], dtype=np.int64))
  bits = _mix(place ^ first, second)
  # Signed, since a TPU compares no unsigned numbers.
  threshold = np.int32(round(rate * 2**32) - 2**31)
  return jax.lax.bitcast_convert_type(bits, jnp.int32) >= threshold


def _mix(x, word):
  """Returns a uint32 hash of uint32 `x`, another one for every `word`."""
  x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
  x = x + word
  x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
  return x ^ (x >> 16)
