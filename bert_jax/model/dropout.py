"""Dropout, by hashing the places of the entries.

A mask depends on the key, its number and an entry's place in the global array
alone, so that it is the same on every mesh and every kind of device.
"""

import jax
import jax.numpy as jnp
import numpy as np


def draw_words(key, num_masks, num_rows):
  """Draws what tells the rows of several masks apart.

  All at once, since a TPU pays for every small operation.

  Args:
    key: PRNG key, or None for no dropout.
    num_masks: how often `dropout` is called.
    num_rows: B.

  Returns:
    list of num_masks int32 [2, B], or of as many None.
  """
  if key is None:
    return [None] * num_masks
  words = jax.lax.bitcast_convert_type(jax.random.key_data(key), jnp.int32)
  mask = jax.lax.broadcasted_iota(jnp.int32, (num_masks, num_rows), 0)
  row = jax.lax.broadcasted_iota(jnp.int32, (num_masks, num_rows), 1)
  first = _mix((row * num_masks + mask) ^ words[0], words[1])
  second = _mix(first ^ words[1], words[0])
  return list(jnp.stack([first, second], axis=1))


def dropout(x, rate, words):
  """Zeroes entries at random and scales the others up to keep the mean.

  Args:
    x: float [B, ...].
    rate: probability of a zero, 0 <= rate < 1.
    words: int32 [2, B], see `draw_words`, or None for no dropout.

  Returns:
    Like `x`.
  """
  if words is None or rate == 0:
    return x
  return jnp.where(draw_keep(words, rate, x.shape), x / (1 - rate), 0)


def draw_keep(words, rate, shape):
  """Draws which entries to keep by hashing their indices.

  Two rounds of multiply and shift an entry, where Threefry takes twenty.

  Args:
    words: int32 [2, B], see `draw_words`.
    rate: probability of False.
    shape: tuple of int, B first; less than 2**32 entries behind it.

  Returns:
    bool, `shape`.
  """
  first, second = words.reshape(2, -1, *[1] * (len(shape) - 1))
  place = jnp.zeros((1,) * len(shape), jnp.int32)
  for i in range(1, len(shape)):
    index = jax.lax.broadcasted_iota(jnp.int32, (1, *shape[1:]), i)
    stride = np.prod(shape[i + 1 :], dtype=np.int64)
    place = place + index * np.uint32(stride).astype(np.int32)
  return keep_at(place, first, second, rate)


def keep_at(place, first, second, rate):
  """Tells which entries of a row to keep.

  The rounds are those of Wellons' lowbias32 (2018, "Prospecting for Hash
  Functions"), with a word of the row before and between them: rows of two
  different keys or indices are no permutations of each other.

  Args:
    place: int32, any shape; an entry's place in its row.
    first: int32, one word of the row, see `draw_words`.
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
