"""Parameters on the host: nested dicts of numpy arrays."""

import zlib

import flax.traverse_util
import jax
import numpy as np

from bert_jax.model.bert import create_params


def checksum(params):
  """Computes a checksum of every number, in the order of the names.

  Args:
    params: nested dict of numpy arrays.

  Returns:
    int below 2**32.
  """
  total = 0
  for leaf in jax.tree.leaves(params):
    total = zlib.crc32(np.ascontiguousarray(leaf), total)
  return total


def fill_with_zeros(params, config):
  """Adds what `BertForPreTraining` needs and a source does not hold.

  Zeros, for heads that nobody asks: random weights would take seconds to draw.

  Args:
    params: nested dict of numpy arrays, see `Pretrained`.
    config: `BertConfig`.

  Returns:
    (nested dict of numpy arrays, tuple of the paths that were added).
  """
  shapes = jax.eval_shape(lambda: create_params(config, jax.random.key(0)))
  shapes = flax.traverse_util.flatten_dict(shapes, sep="/")
  found = flax.traverse_util.flatten_dict(params, sep="/")
  filled = {
    path: found.get(path, np.zeros(shape.shape, np.float32))
    for path, shape in shapes.items()
  }
  added = tuple(path for path in shapes if path not in found)
  return flax.traverse_util.unflatten_dict(filled, sep="/"), added
