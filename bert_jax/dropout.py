"""Dropout, by hashing the places of the entries.

A mask depends on the key and an entry's place in the global array alone, so
that it is the same on every mesh and every kind of device.
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
  return jnp.where(hashed_keep(key, rate, x.shape), x / (1 - rate), 0)


def hashed_keep(key, rate, shape):
  """Draws which entries to keep by hashing their indices.

  Two rounds of multiply and shift an entry, where Threefry takes twenty.

  Args:
    key: PRNG key.
    rate: probability of False.
    shape: tuple of int; less than 2**32 entries behind the first dimension.

  Returns:
    bool, `shape`.
  """
  words = row_words(key, shape[0]).reshape(shape[0], 2, *[1] * (len(shape) - 1))
  words = jax.lax.bitcast_convert_type(words, jnp.int32)
  place = jnp.zeros((1,) * len(shape), jnp.int32)
  for i in range(1, len(shape)):
    index = jax.lax.broadcasted_iota(jnp.int32, (1, *shape[1:]), i)
    stride = np.prod(shape[i + 1 :], dtype=np.int64)
    place = place + index * np.uint32(stride).astype(np.int32)
  return keep_at(place, words[:, 0], words[:, 1], rate)


def row_words(key, num_rows):
  """Draws what tells a key's rows apart.

  Args:
    key: PRNG key.
    num_rows: int.

  Returns:
    uint32 [num_rows, 2].
  """
  words = jax.lax.bitcast_convert_type(jax.random.key_data(key), jnp.int32)
  rows = jnp.arange(num_rows, dtype=jnp.int32)
  first = _mix(rows ^ words[0], words[1])
  second = _mix(first ^ words[1], words[0])
  words = jnp.stack([first, second], axis=-1)
  return jax.lax.bitcast_convert_type(words, jnp.uint32)


def keep_at(place, first, second, rate):
  """Tells which entries of a row to keep.

  The rounds are those of Wellons' lowbias32 (2018, "Prospecting for Hash
  Functions"), with a word of the row before and between them: rows of two
  different keys or indices are no permutations of each other.

  Args:
    place: int32, any shape; an entry's place in its row.
    first: int32, one word of the row, see `row_words`.
    second: int32, the other one.
    rate: probability of False.

  Returns:
    bool, the shape of all three together.
  """
  # Signed, since a TPU compares no unsigned numbers.
  threshold = np.int32(round(rate * 2**32) - 2**31)
  return _mix(place ^ first, second) >= threshold


def _mix(x, word):
  """Returns a hash of int32 `x`, another one for every `word`."""
  shift = jax.lax.shift_right_logical
  x = (x ^ shift(x, np.int32(16))) * np.int32(0x7FEB352D)
  x = x + word
  x = (x ^ shift(x, np.int32(15))) * np.uint32(0x846CA68B).astype(np.int32)
  return x ^ shift(x, np.int32(16))
