"""Pooling of token vectors to one per text, as in sentence-transformers."""

import jax.numpy as jnp

POOLINGS = ("mean", "cls")


def pool(x, attention_mask, pooling):
  """Pools the vectors of a text's tokens.

  Args:
    x: float [B, L, D].
    attention_mask: bool [B, L]; False marks padding.
    pooling: "mean" over the tokens, [CLS] and [SEP] included, or "cls".

  Returns:
    float32 [B, D].
  """
  if pooling == "cls":
    return x[:, 0].astype(jnp.float32)
  mask = attention_mask[:, :, None]
  total = jnp.where(mask, x, 0).sum(1, dtype=jnp.float32)
  return total / mask.sum(1, dtype=jnp.float32)
