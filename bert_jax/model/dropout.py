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
  return keep_bits(hash_second(hash_first(place, first), second), rate)


def draw_attention_keep(words, rate, num_heads, length):
  """Draws which attention probabilities to keep.

  The heads of a sequence share the first round of the hash, and two heads the
  32 bits of its result, since this is most of the attention kernel's work.

  Args:
    words: int32 [2, B], see `draw_words`.
    rate: probability of False, a multiple of 2**-16 or rounded to one.
    num_heads: N.
    length: L, at most 2**16.

  Returns:
    bool [B, N, L, L], the position that reads before the one that is read.
  """
  first, second = words.reshape(2, -1, 1, 1, 1)
  heads = jnp.arange(num_heads, dtype=jnp.int32).reshape(1, -1, 1, 1)
  place = attention_place(
    jax.lax.broadcasted_iota(jnp.int32, (1, 1, length, 1), 2),
    jax.lax.broadcasted_iota(jnp.int32, (1, 1, 1, length), 3),
    length,
  )
  hashed = hash_first(place, first)
  bits = hash_second(hashed, word_of_head(second, heads))
  return keep_bits(own_half(bits, heads), rate)


def attention_place(query, key, length):
  """Numbers the pairs of positions in a sequence: int32, wraps around."""
  return query * np.int32(length) + key


def word_of_head(word, head):
  """Returns the second word of a head's hash; heads 2i and 2i + 1 share it."""
  return word + jax.lax.shift_right_logical(head, np.int32(1)) * np.uint32(
    0x9E3779B9
  ).astype(np.int32)


def own_half(bits, head):
  """Moves the 16 bits that are a head's to the upper half of int32 `bits`."""
  return bits << ((head & 1) * 16)


def hash_first(place, word):
  """Runs the first of two rounds that hash an entry.

  The rounds are those of Wellons' lowbias32 (2018, "Prospecting for Hash
  Functions"), with a word of the row before and between them: rows of two
  different keys or indices are no permutations of each other. Its last shift
  is left out, since it changes no bit of the upper half.

  Args:
    place: int32, any shape; an entry's place in its row.
    word: int32, one word of the row, see `draw_words`.

  Returns:
    int32, the shape of both together.
  """
  x = place ^ word
  return (x ^ _shift_right(x, 16)) * np.int32(0x7FEB352D)


def hash_second(x, word):
  """Runs the second round on what `hash_first` returned; same shapes."""
  x = x + word
  return (x ^ _shift_right(x, 15)) * np.uint32(0x846CA68B).astype(np.int32)


def keep_bits(bits, rate):
  """Compares random int32 `bits` with a rate: False with this probability."""
  # Signed, since a TPU compares no unsigned numbers.
  return bits >= np.int32(round(rate * 2**32) - 2**31)


def _shift_right(x, num_bits):
  return jax.lax.shift_right_logical(x, np.int32(num_bits))


def _mix(x, word):
  """Returns a hash of int32 `x`, another one for every `word`."""
  x = hash_second(hash_first(x, np.int32(0)), word)
  return x ^ _shift_right(x, 16)
