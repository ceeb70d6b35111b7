"""The random bits of dropout: their share, and no repetition."""

import jax
import numpy as np
import pytest

from bert_jax.config import default_config
from bert_jax.model import dropout
from bert_jax.sharding import mesh as mesh_lib
from bert_jax.sharding import rows as rows_lib


def test_hashed_masks_keep_their_share_in_every_row_and_column():
  (seeds,) = dropout.draw_seeds(jax.random.key(3), 1, 64)
  keep = np.asarray(dropout.draw_keep(seeds, 0.1, (64, 12, 40, 40)))
  assert keep.mean() == pytest.approx(0.9, abs=4 * 0.3 / keep.size**0.5)
  for axis in range(keep.ndim):
    others = tuple(i for i in range(keep.ndim) if i != axis)
    error = 0.3 / (keep.size / keep.shape[axis]) ** 0.5
    assert np.abs(keep.mean(others) - 0.9).max() < 5 * error


def test_hashed_masks_of_other_keys_numbers_and_rows_are_unrelated():
  """No two masks agree more often than chance: 0.9^2 + 0.1^2."""
  keys = jax.random.split(jax.random.key(0), 4)
  seeds = [seeds for key in keys for seeds in dropout.draw_seeds(key, 2, 16)]
  masks = np.stack([dropout.draw_keep(w, 0.1, (16, 4096)) for w in seeds])
  masks = masks.reshape(128, 4096)
  agree = (masks[:, None] == masks[None]).mean(-1)
  pairs = agree[np.triu_indices(128, 1)]
  assert pairs.mean() == pytest.approx(0.82, abs=1e-3)
  assert np.abs(pairs - 0.82).max() < 6 * (0.82 * 0.18 / 4096) ** 0.5


def test_attention_masks_keep_their_share_at_every_head_query_and_key():
  (seeds,) = dropout.draw_seeds(jax.random.key(3), 1, 32)
  keep = np.asarray(dropout.draw_attention_keep(seeds, 0.1, 12, 64))
  assert keep.mean() == pytest.approx(0.9, abs=4 * 0.3 / keep.size**0.5)
  for axis in range(keep.ndim):
    others = tuple(i for i in range(keep.ndim) if i != axis)
    error = 0.3 / (keep.size / keep.shape[axis]) ** 0.5
    assert np.abs(keep.mean(others) - 0.9).max() < 5 * error


def test_attention_masks_of_heads_are_unrelated():
  """Also of two heads that share the 32 bits of one hash."""
  (seeds,) = dropout.draw_seeds(jax.random.key(1), 1, 16)
  keep = np.asarray(dropout.draw_attention_keep(seeds, 0.1, 12, 64))
  masks = keep.reshape(16, 12, -1)
  agree = (masks[:, :, None] == masks[:, None]).mean(-1)
  deviation = (0.82 * 0.18 / masks.shape[-1]) ** 0.5
  pairs = agree[:, *np.triu_indices(12, 1)]
  assert pairs.mean() == pytest.approx(0.82, abs=5 * deviation / 32)
  assert np.abs(pairs - 0.82).max() < 6 * deviation
  sharing = agree[:, range(0, 12, 2), range(1, 12, 2)]
  assert sharing.mean() == pytest.approx(0.82, abs=5 * deviation / 96**0.5)


def test_hashed_mask_does_not_depend_on_the_mesh():
  mesh = mesh_lib.create_mesh(default_config().mesh)

  def draw(key):
    (seeds,) = dropout.draw_seeds(key, 1, 32)
    return dropout.draw_keep(seeds, 0.1, (32, 8, 24))

  split = jax.jit(draw, out_shardings=rows_lib.batch_sharding(mesh))
  key = jax.random.key(1)
  np.testing.assert_array_equal(split(key), draw(key))
