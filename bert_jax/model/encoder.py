"""The encoder of BERT: post-LN blocks of attention and feed-forward.

Shapes are spelled as in `bert.py`.
"""

from flax import linen as nn

from bert_jax.model.activations import ACTIVATIONS
from bert_jax.model.attention import dot_product_attention, packed_attention
from bert_jax.model.bert_config import BertConfig
from bert_jax.model.dropout import dropout
from bert_jax.model.matmul import add_bias, einsum
from bert_jax.sharding import packing

DROPOUTS_A_LAYER = 3


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
    return add_bias(x, bias)


class SelfAttention(nn.Module):
  """Multi-head self-attention over a padded batch.

  Its weights are those of query, key and value, or the three packed as one
  (`packing.pack_params`).

  Attributes:
    config: architecture; `hidden_size` must divide by the head count.
  """

  config: BertConfig

  @nn.compact
  def __call__(self, x, attention_mask, dropout_seeds):
    """Mixes information across positions.

    Args:
      x: float [B, L, D].
      attention_mask: bool [B, L]; False marks padding, never attended to.
      dropout_seeds: int32 [2, B], see `dropout.draw_seeds`, or None for none.

    Returns:
      float [B, L, D].
    """
    config, width = self.config, self.config.hidden_size
    settings = (
      attention_mask,
      config.num_attention_heads,
      config.attention_probs_dropout_prob,
      dropout_seeds,
    )
    if self.has_variable("params", packing.PACKED):
      packed = Dense(config, 3 * width, name=packing.PACKED)(x)
      return packed_attention(packed, *settings)
    query, key, value = (
      Dense(config, width, name=name)(x) for name in packing.NAMES
    )
    return dot_product_attention(query, key, value, *settings)


class SublayerOutput(nn.Module):
  """Output of both sublayers: `LayerNorm(residual + dropout(dense(x)))`.

  Attributes:
    config: architecture.
  """

  config: BertConfig

  @nn.compact
  def __call__(self, x, residual, dropout_seeds):
    """Projects to D and adds to what came in.

    Args:
      x: float [B, L, D] or [B, L, F].
      residual: float [B, L, D], the sublayer's input.
      dropout_seeds: see `SelfAttention`.

    Returns:
      float [B, L, D].
    """
    config = self.config
    x = Dense(config, config.hidden_size, name="dense")(x)
    x = dropout(x, config.hidden_dropout_prob, dropout_seeds)
    return create_layer_norm(config)(residual + x)


class Attention(nn.Module):
  """The first sublayer: self-attention and its output layer."""

  config: BertConfig

  @nn.compact
  def __call__(self, x, attention_mask, dropout_seeds):
    """Same as `SelfAttention`, with a pair of `dropout_seeds`."""
    probs_seeds, output_seeds = dropout_seeds
    y = SelfAttention(self.config, name="self")(x, attention_mask, probs_seeds)
    return SublayerOutput(self.config, name="output")(y, x, output_seeds)


class Intermediate(nn.Module):
  """The first half of the feed-forward sublayer: D to F, and activation."""

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
  def __call__(self, x, attention_mask, dropout_seeds):
    """Same as `SelfAttention`, with `DROPOUTS_A_LAYER` `dropout_seeds`."""
    *attention_seeds, output_seeds = dropout_seeds
    x = Attention(self.config, name="attention")(
      x, attention_mask, attention_seeds
    )
    y = Intermediate(self.config, name="intermediate")(x)
    return SublayerOutput(self.config, name="output")(y, x, output_seeds)


class BertEncoder(nn.Module):
  """The stack of blocks.

  Unrolled. A scan over layers compiles faster, but stacks residuals and
  optimizer state in HBM: BERT-base, 256 x 128 on 16 chips of v5e, took 29.4 ms
  scanned and 17.0 unrolled (the compiler's estimate, of an early version).
  """

  config: BertConfig

  @nn.compact
  def __call__(self, x, attention_mask, dropout_seeds):
    """Same as `SelfAttention`, with the `dropout_seeds` of all blocks.

    Returns:
      tuple of num_hidden_layers + 1 float [B, L, D]: the input, then the
      output of each block.
    """
    Layer = nn.remat(BertLayer) if self.config.remat else BertLayer
    hidden_states = [x]
    for i in range(self.config.num_hidden_layers):
      first = DROPOUTS_A_LAYER * i
      seeds = dropout_seeds[first : first + DROPOUTS_A_LAYER]
      x = Layer(self.config, name=f"layer_{i}")(x, attention_mask, seeds)
      hidden_states.append(x)
    return tuple(hidden_states)
