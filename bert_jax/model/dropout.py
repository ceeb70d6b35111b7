"""Dropout whose random bits are a hash of each entry's indices.

A mask depends only on the PRNG key, the number of the dropout in the model and
the indices in the global array, so it is the same on every mesh and every kind
of device.
"""

import jax
import jax.numpy as jnp
import numpy as np


def draw_seeds(key, num_masks, num_rows):
  """Draws two hash seeds for each sequence of each mask.

  For all masks at once, since every small operation has an overhead on TPUs.

  Args:
    key: PRNG key, or None for no dropout.
    num_masks: dropouts in the model.
    num_rows: B.

  Returns:
    list of num_masks int32 [2, B]; of as many None without a key.
  """
  if key is None:
    return [None] * num_masks
  seeds = jax.lax.bitcast_convert_type(jax.random.key_data(key), jnp.int32)
  mask = jax.lax.broadcasted_iota(jnp.int32, (num_masks, num_rows), 0)
  row = jax.lax.broadcasted_iota(jnp.int32, (num_masks, num_rows), 1)
  first = _mix((row * num_masks + mask) ^ seeds[0], seeds[1])
  second = _mix(first ^ seeds[1], seeds[0])
  return list(jnp.stack([first, second], axis=1))


def dropout(x, rate, seeds):
  """Zeroes entries at random and scales the others up to keep the mean.

  Args:
    x: float [B, ...].
    rate: probability of a zero, 0 <= rate < 1.
    seeds: int32 [2, B], see `draw_seeds`, or None for no dropout.

  Returns:
    Like `x`.
  """
  if seeds is None or rate == 0:
    return x
  return jnp.where(draw_keep(seeds, rate, x.shape), x / (1 - rate), 0)


def draw_keep(seeds, rate, shape):
  """Draws which entries to keep by hashing their indices.

  Takes two rounds of multiply and shift per entry; Threefry takes twenty.

  Args:
    seeds: int32 [2, B], see `draw_seeds`.
    rate: probability of False.
    shape: tuple of int, B first; a sequence has less than 2**32 entries.

  Returns:
    bool, `shape`.
  """
  first, second = seeds.reshape(2, -1, *[1] * (len(shape) - 1))
  place = jnp.zeros((1,) * len(shape), jnp.int32)
  for i in range(1, len(shape)):
    index = jax.lax.broadcasted_iota(jnp.int32, (1, *shape[1:]), i)
    stride = np.prod(shape[i + 1 :], dtype=np.int64)
    place = place + index * np.uint32(stride).astype(np.int32)
  return keep_bits(hash_second(hash_first(place, first), second), rate)


def draw_attention_keep(seeds, rate, num_heads, length):
  """Draws which attention probabilities to keep.

  The heads of a sequence share the first round of the hash, and two heads the
  32 bits of its result: hashing is most of the attention kernel's vector work.

  Args:
    seeds: int32 [2, B], see `draw_seeds`.
    rate: probability of False, a multiple of 2**-16 or rounded to one.
    num_heads: N.
    length: L, at most 2**16.

  Returns:
    bool [B, N, L, L], indexed by query before key.
  """
  first, second = seeds.reshape(2, -1, 1, 1, 1)
  heads = jnp.arange(num_heads, dtype=jnp.int32).reshape(1, -1, 1, 1)
  place = attention_place(
    jax.lax.broadcasted_iota(jnp.int32, (1, 1, length, 1), 2),
    jax.lax.broadcasted_iota(jnp.int32, (1, 1, 1, length), 3),
    length,
  )
  hashed = hash_first(place, first)
  bits = hash_second(hashed, seed_of_head(second, heads))
  return keep_bits(own_half(bits, heads), rate)


def attention_place(query, key, length):
  """Numbers the (query, key) pairs of a sequence; int32, wraps around."""
  return query * np.int32(length) + key


def seed_of_head(seed, head):
  """Returns a head's second seed, which heads 2i and 2i + 1 share."""
  return seed + jax.lax.shift_right_logical(head, np.int32(1)) * np.uint32(
    0x9E3779B9
  ).astype(np.int32)


def own_half(bits, head):
  """Moves the 16 bits of a head to the upper half of int32 `bits`.

  Even heads own the upper half of the shared bits, odd heads the lower.
  """
  return bits << ((head & 1) * 16)


def hash_first(place, seed):
  """Runs the first of two rounds that hash an entry.

  The rounds are those of Wellons' lowbias32 (2018, "Prospecting for Hash
  Functions"), with a seed before each, so that the masks of two sequences are
  no permutations of each other. The last shift of lowbias32 is left out, since
  it changes no bit of the upper half.

  Args:
    place: int32, any shape; an entry's index in its sequence.
    seed: int32, the sequence's first seed, see `draw_seeds`.

  Returns:
    int32, the shape that both broadcast to.
  """
  x = place ^ seed
  return (x ^ _shift_right(x, 16)) * np.int32(0x7FEB352D)


def hash_second(x, seed):
  """Runs the second round on what `hash_first` returned; shapes as there."""
  x = x + seed
  return (x ^ _shift_right(x, 15)) * np.uint32(0x846CA68B).astype(np.int32)


def keep_bits(bits, rate):
  """Turns random int32 `bits` into bool, False with probability `rate`."""
  # Signed, since TPUs have no unsigned comparison.
  return bits >= np.int32(round(rate * 2**32) - 2**31)


def _shift_right(x, num_bits):
  return jax.lax.shift_right_logical(x, np.int32(num_bits))


def _mix(x, seed):
  """Returns a hash of int32 `x`, another one for every `seed`."""
  x = hash_second(hash_first(x, np.int32(0)), seed)
  return x ^ _shift_right(x, 16)
