"""Query, key and value packed as one matrix, and taken apart again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.model.bert import BertConfig, BertForPreTraining, create_params
from bert_jax.sharding import packing

CONFIG = BertConfig(
  vocab_size=50,
  hidden_size=48,
  num_hidden_layers=2,
  num_attention_heads=6,
  intermediate_size=32,
  max_position_embeddings=16,
)


def _params():
  """Random everywhere, biases too."""
  shapes = jax.eval_shape(lambda: create_params(CONFIG, jax.random.key(0)))
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda s: rng.normal(0, 0.2, s.shape).astype(np.float32), shapes
  )


@pytest.mark.parametrize(
  ("width", "head_size", "num_shards", "expected"),
  [
    (768, 64, 1, 128),
    (768, 64, 2, 128),
    # Three heads a device do not fill two registers.
    (768, 64, 4, 192),
    (1024, 128, 4, 128),
    (512, 256, 1, 256),
  ],
)
def test_a_unit_is_whole_heads_of_one_device(
  width, head_size, num_shards, expected
):
  assert packing.unit_size(width, head_size, num_shards) == expected


@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_each_device_holds_query_key_and_value_of_its_heads(num_shards):
  arrays = [np.arange(48) + 100 * i for i in range(3)]
  unit = packing.unit_size(48, 8, num_shards)
  packed = np.asarray(packing.interleave(jnp.asarray(arrays), unit))
  for part, *own in zip(
    np.split(packed, num_shards),
    *[np.split(x, num_shards) for x in arrays],
    strict=True,
  ):
    np.testing.assert_array_equal(np.sort(part), np.concatenate(own))


@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_unpacking_undoes_packing(num_shards):
  params = _params()
  packed = packing.pack_params(params, 8, num_shards)
  layer = packed["bert"]["encoder"]["layer_1"]["attention"]["self"]
  assert layer.keys() == {packing.PACKED}
  assert layer[packing.PACKED]["kernel"].shape == (48, 144)
  back = packing.unpack_params(packed, 8, num_shards)
  jax.tree.map(np.testing.assert_array_equal, params, back)


@pytest.mark.slow
def test_a_model_with_packed_weights_computes_the_same_and_its_gradients():
  rng = np.random.default_rng(1)
  ids = jnp.asarray(rng.integers(5, 50, (2, 16)))
  mask = jnp.arange(16)[None] < jnp.array([[16], [9]])

  def loss(params):
    mlm_logits, nsp_logits = BertForPreTraining(CONFIG).apply(
      {"params": params}, ids, ids * 0, mask, ids[:, :3] % 9, deterministic=True
    )
    real = mlm_logits[..., : CONFIG.vocab_size]
    return (real**2).mean() + (nsp_logits**2).sum()

  params = _params()
  value, grads = jax.value_and_grad(loss)(params)
  packed_value, packed_grads = jax.value_and_grad(loss)(
    packing.pack_params(params, CONFIG.head_size, 1)
  )
  assert packed_value == pytest.approx(float(value), rel=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    grads,
    packing.unpack_params(packed_grads, CONFIG.head_size, 1),
  )
