"""The encoder of BERT: post-LN blocks of attention and feed-forward.

Shapes are spelled as in `modeling.py`.
"""

import jax.numpy as jnp
from flax import linen as nn

from bert_jax.bert_config import ACTIVATIONS, BertConfig
from bert_jax.dropout import dropout


def dot_product_attention(
  query, key, value, attention_mask, dropout_rate, dropout_key
):
  """Lets every position read from the visible ones, head by head.

  Args:
    query: float [B, L, N, H].
    key: float [B, L, N, H].
    value: float [B, L, N, H].
    attention_mask: bool [B, L]; False marks padding, which nobody reads.
    dropout_rate: of the attention probabilities.
    dropout_key: PRNG key, or None for no dropout.

  Returns:
    float [B, L, N, H], same dtype as `value`.
  """
  # M is L again: the position that is read.
  scores = jnp.einsum("BLNH,BMNH->BNLM", query, key).astype(jnp.float32)
  scores = scores / query.shape[-1] ** 0.5
  # The most negative finite number: a row of nothing but padding stays finite.
  lowest = jnp.finfo(jnp.float32).min
  scores = jnp.where(attention_mask[:, None, None, :], scores, lowest)
  probs = nn.softmax(scores, axis=-1).astype(value.dtype)
  probs = dropout(probs, dropout_rate, dropout_key)
  return jnp.einsum("BNLM,BMNH->BLNH", probs, value)


def create_layer_norm(config):
  """Returns the LayerNorm of every sublayer; statistics are float32."""
  return nn.LayerNorm(
    epsilon=config.layer_norm_eps, dtype=config.dtype, name="LayerNorm"
  )


def create_dense(config, features, axis, name):
  """Returns a linear map of `axis` to `features`, both int or tuple."""
  return nn.DenseGeneral(
    features,
    axis=axis,
    dtype=config.dtype,
    kernel_init=config.kernel_init,
    name=name,
  )


class SelfAttention(nn.Module):
  """Multi-head self-attention over a padded batch.

  Attributes:
    config: architecture; `hidden_size` must divide by the head count.
  """

  config: BertConfig

  @nn.compact
  def __call__(self, x, attention_mask, *, deterministic):
    """Mixes information across positions.

    Args:
      x: float [B, L, D].
      attention_mask: bool [B, L]; False marks padding, which nobody reads.
      deterministic: if True, no dropout and no "dropout" RNG is needed.

    Returns:
      float [B, L, N, H].
    """
    config = self.config
    heads = (config.num_attention_heads, config.head_size)
    return dot_product_attention(
      create_dense(config, heads, -1, "query")(x),
      create_dense(config, heads, -1, "key")(x),
      create_dense(config, heads, -1, "value")(x),
      attention_mask,
      config.attention_probs_dropout_prob,
      None if deterministic else self.make_rng("dropout"),
    )


class SublayerOutput(nn.Module):
  """The end of both sublayers: `LN(residual + dropout(dense(x)))`."""

  config: BertConfig

  @nn.compact
  def __call__(self, x, residual, *, deterministic):
    """Projects to D and adds to what came in.

    Args:
      x: float [B, L, N, H] or [B, L, F].
      residual: float [B, L, D], the sublayer's input.
      deterministic: if True, no dropout and no "dropout" RNG is needed.

    Returns:
      float [B, L, D].
    """
    config = self.config
    axes = tuple(range(2, x.ndim))
    x = create_dense(config, config.hidden_size, axes, "dense")(x)
    key = None if deterministic else self.make_rng("dropout")
    x = dropout(x, config.hidden_dropout_prob, key)
    return create_layer_norm(config)(residual + x)


class Attention(nn.Module):
  """The first sublayer: self-attention and its output."""

  config: BertConfig

  @nn.compact
  def __call__(self, x, attention_mask, *, deterministic):
    """Same arguments as `SelfAttention`; returns float [B, L, D]."""
    y = SelfAttention(self.config, name="self")(
      x, attention_mask, deterministic=deterministic
    )
    return SublayerOutput(self.config, name="output")(
      y, x, deterministic=deterministic
    )


class Intermediate(nn.Module):
  """The wide half of the feed-forward sublayer."""

  config: BertConfig

  @nn.compact
  def __call__(self, x):
    """Maps float [B, L, D] to float [B, L, F]."""
    config = self.config
    x = create_dense(config, config.intermediate_size, -1, "dense")(x)
    return ACTIVATIONS[config.hidden_act](x)


class BertLayer(nn.Module):
  """One post-LN block: attention, then feed-forward."""

  config: BertConfig

  @nn.compact
  def __call__(self, x, attention_mask, *, deterministic):
    """Same arguments as `SelfAttention`; returns float [B, L, D]."""
    x = Attention(self.config, name="attention")(
      x, attention_mask, deterministic=deterministic
    )
    y = Intermediate(self.config, name="intermediate")(x)
    return SublayerOutput(self.config, name="output")(
      y, x, deterministic=deterministic
    )


class BertEncoder(nn.Module):
  """The stack of blocks.

  Unrolled: scanned layers stack their residuals and optimizer state in
  memory, which costs a TPU more than the longer compilation.
  """

  config: BertConfig

  @nn.compact
  def __call__(self, x, attention_mask, *, deterministic):
    """Same arguments as `SelfAttention`.

    Returns:
      tuple of num_hidden_layers + 1 float [B, L, D]: the input, then the
      output of each block.
    """
    hidden_states = [x]
    for i in range(self.config.num_hidden_layers):
      x = BertLayer(self.config, name=f"layer_{i}")(
        x, attention_mask, deterministic=deterministic
      )
      hidden_states.append(x)
    return tuple(hidden_states)
