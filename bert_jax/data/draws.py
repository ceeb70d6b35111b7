"""Random numbers as a pure function of a key, an index and a name.

Nothing here keeps a state, so that any row of any batch can be drawn alone.
"""

import math
import zlib

import numpy as np

# 2**64 divided by the golden ratio. Its multiples modulo 2**64 are spread more
# evenly than random numbers are (a Weyl sequence).
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FEISTEL_ROUNDS = 4


def mix(*words):
  """Hashes uint64 words; arrays broadcast, and the result is an array."""
  state = np.zeros(1, np.uint64)
  for word in words:
    state = _absorb(state, word)
  return state


def _absorb(state, word):
  """Hashes one more uint64 word into a state: splitmix64's scrambling.

  Source: Steele, Lea and Flood, "Fast splittable pseudorandom number
  generators", 2014.
  """
  state = (state ^ word) + GOLDEN
  state ^= state >> np.uint64(30)
  state *= np.uint64(0xBF58476D1CE4E5B9)
  state ^= state >> np.uint64(27)
  state *= np.uint64(0x94D049BB133111EB)
  state ^= state >> np.uint64(31)
  return state


def permute(numbers, size, key):
  """Permutes [0, size) by a keyed Feistel network with cycle walking.

  The numbers are cells of a table of about sqrt(size) rows and columns, so
  that few fall outside and walk on.

  Args:
    numbers: uint64 [B], each below `size`.
    size: int, how many numbers there are.
    key: uint64 [B], one permutation each.

  Returns:
    uint64 [B], each below `size`; a bijection for each key.
  """
  rows = np.uint64(math.isqrt(size - 1) + 1)
  columns = np.uint64(-(-size // int(rows)))
  numbers = numbers.copy()
  outside = np.arange(len(numbers))
  while len(outside):
    row, column = np.divmod(numbers[outside], columns)
    round_key = key[outside]
    for _ in range(_FEISTEL_ROUNDS // 2):
      row = (row + mix(round_key, column) % rows) % rows
      column = (column + mix(round_key, row) % columns) % columns
      round_key = round_key + GOLDEN
    numbers[outside] = walked = row * columns + column
    outside = outside[walked >= size]
  return numbers


class Draw:
  """Random numbers for rows, each by its key and the name of the draw."""

  def __init__(self, keys):
    """Takes uint64 [B], the key of each row."""
    self._state = mix(keys)

  def uniform(self, name):
    """Returns float64 [B] in [0, 1)."""
    tag = np.uint64(zlib.crc32(name.encode()))
    bits = _absorb(self._state, tag) >> np.uint64(11)
    return bits.astype(np.float64) / 2.0**53

  def integer(self, name, bound):
    """Returns int64 [B] in [0, bound); `bound` is far below 2**53."""
    return (self.uniform(name) * bound).astype(np.int64)

  def tries(self, rows, numbers):
    """Returns a `Draw` of several keys for each of some rows.

    Args:
      rows: int64 [R], which rows.
      numbers: int [N], the numbers of the tries.

    Returns:
      `Draw` of R * N keys, the tries of a row beside each other.
    """
    numbers = np.asarray(numbers, np.uint64)
    keys = _absorb(self._state[rows][:, None], numbers)
    return Draw(keys.ravel())
