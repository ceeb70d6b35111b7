"""The encoder of BERT: post-LN blocks of attention and feed-forward.

Shapes are spelled as in `modeling.py`.
"""

from flax import linen as nn

from bert_jax.activations import ACTIVATIONS
from bert_jax.attention import dot_product_attention
from bert_jax.bert_config import BertConfig
from bert_jax.dropout import dropout
from bert_jax.products import add_bias, einsum


def create_layer_norm(config):
  """Returns the LayerNorm of every sublayer; statistics are float32."""
  return nn.LayerNorm(
    epsilon=config.layer_norm_eps, dtype=config.dtype, name="LayerNorm"
  )


class Dense(nn.Module):
  """A linear map of the last dimension.

  Attributes:
    config: architecture, for dtype and initializer.
    features: size of what comes out.
  """

  config: BertConfig
  features: int

  @nn.compact
  def __call__(self, x):
    """Maps float [..., in] to float [..., out]."""
    dtype = self.config.dtype
    shape = (x.shape[-1], self.features)
    kernel = self.param("kernel", self.config.kernel_init, shape)
    bias = self.param("bias", nn.initializers.zeros, shape[1:])
    x = einsum("...I,IO->...O", x.astype(dtype), kernel.astype(dtype))
    return add_bias(x, bias.astype(dtype))


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
      float [B, L, D].
    """
    config = self.config
    return dot_product_attention(
      Dense(config, config.hidden_size, name="query")(x),
      Dense(config, config.hidden_size, name="key")(x),
      Dense(config, config.hidden_size, name="value")(x),
      attention_mask,
      config.num_attention_heads,
      config.attention_probs_dropout_prob,
      None if deterministic else self.make_rng("dropout"),
    )


class SublayerOutput(nn.Module):
  """The end of both sublayers: `LN(residual + dropout(dense(x)))`.

  Attributes:
    config: architecture.
  """

  config: BertConfig

  @nn.compact
  def __call__(self, x, residual, *, deterministic):
    """Projects to D and adds to what came in.

    Args:
      x: float [B, L, D] or [B, L, F].
      residual: float [B, L, D], the sublayer's input.
      deterministic: if True, no dropout and no "dropout" RNG is needed.

    Returns:
      float [B, L, D].
    """
    config = self.config
    x = Dense(config, config.hidden_size, name="dense")(x)
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
    x = Dense(config, config.intermediate_size, name="dense")(x)
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

    def apply(layer, x):
      return layer(x, attention_mask, deterministic=deterministic)

    apply = nn.remat(apply) if self.config.remat else apply
    hidden_states = [x]
    for i in range(self.config.num_hidden_layers):
      x = apply(BertLayer(self.config, name=f"layer_{i}"), x)
      hidden_states.append(x)
    return tuple(hidden_states)
