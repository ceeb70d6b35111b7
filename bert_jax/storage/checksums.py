"""A checksum for each array of a train state, computed on the device.

A flipped byte in a file of a checkpoint restores without an error otherwise.
"""

import functools
import math

import jax
import jax.numpy as jnp


def checksums(state):
  """Computes the checksum of every array.

  Each 32-bit word is hashed together with its index and the hashes are added
  up, so that words, rows or axes that changed places are seen as well.

  Args:
    state: pytree of 32-bit arrays, on any mesh.

  Returns:
    dict from path to checksum, an int below 2**32.
  """
  return _by_name(state, _sum_hashes)


def plain_sums(state):
  """Adds up the words of every array, as checkpoints were checked at first.

  Args:
    state: pytree of 32-bit arrays, on any mesh.

  Returns:
    dict from path to the sum of the array's words, modulo 2**32.
  """
  return _by_name(state, _sum_words)


def describe(state):
  """Describes every array as a checkpoint keeps it.

  Args:
    state: pytree of 32-bit arrays, on any mesh.

  Returns:
    dict from path to {"shape": list, "dtype": str, "checksum": int}.
  """
  found = checksums(state)
  return {
    name: {
      "shape": list(leaf.shape),
      "dtype": str(leaf.dtype),
      "checksum": found[name],
    }
    for name, leaf in named_arrays(state).items()
  }


def named_arrays(state):
  """Returns {path: array or shape} of a pytree, such as "params/x/bias"."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree.leaves_with_path(state)
  }


def _by_name(state, add_up):
  arrays = named_arrays(state)
  sums = jax.device_get(add_up(list(arrays.values())))
  return {name: int(s) for name, s in zip(arrays, sums, strict=True)}


@jax.jit
def _sum_hashes(leaves):
  def sum_hashes(leaf):
    words = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
    return jnp.sum(_hash(words ^ _hash(_indices(leaf.shape))))

  return [sum_hashes(leaf) for leaf in leaves]


@jax.jit
def _sum_words(leaves):
  return [
    jnp.sum(jax.lax.bitcast_convert_type(leaf, jnp.uint32)) for leaf in leaves
  ]


def _indices(shape):
  """Returns the index of each word in the flat array, modulo 2**32."""
  terms = (
    jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    * jnp.uint32(math.prod(shape[axis + 1 :]) % 2**32)
    for axis in range(len(shape))
  )
  return functools.reduce(jnp.add, terms, jnp.zeros(shape, jnp.uint32))


def _hash(words):
  """Mixes the bits of each uint32; a bijection (MurmurHash3's finalizer)."""
  words ^= words >> 16
  words *= jnp.uint32(0x85EBCA6B)
  words ^= words >> 13
  words *= jnp.uint32(0xC2B2AE35)
  return words ^ (words >> 16)
