"""BERT (Devlin et al. 2018, section 3) as thin linen modules.

Parameters are plain nested dicts of float32 arrays whose names follow Hugging
Face's, so that `hf.py` is a table. Every module's `config` is the
architecture. Shapes, in docstrings and einsums:

  B batch      L length            K predictions a sequence
  D hidden     N attention heads   H head size (D = N * H)
  F feed-forward                   V vocabulary, padded (`padded_vocab_size`)
  T token types
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from bert_jax.dropout import dropout

# Rows of the embedding table come in multiples of a TPU's 128 lanes.
VOCAB_MULTIPLE = 128

# Logit of the padding entries of the vocabulary: finite, so that no loss is
# ever inf - inf, and far below every real logit.
NEVER = -1e9

ACTIVATIONS = {
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
}


def create_bert_config(config, vocab_size):
  """Builds the architecture from a run's settings.

  Args:
    config: settings with the keys of `default_config()`.
    vocab_size: number of tokens in the vocabulary.

  Returns:
    `BertConfig`.
  """
  return BertConfig(vocab_size=vocab_size, **config.model)


def create_params(config, key):
  """Draws fresh weights of `BertForPreTraining`.

  Args:
    config: `BertConfig`.
    key: PRNG key.

  Returns:
    Nested dict of float32 arrays. Use `jax.eval_shape` for shapes alone.
  """
  tokens = jnp.zeros((1, 1), jnp.int32)
  return BertForPreTraining(config).init(
    key, tokens, tokens, tokens == 0, tokens, deterministic=True
  )["params"]


def segment_inputs(a_length, length, max_length):
  """Makes what the model needs besides the ids, from lengths alone.

  A row reads `[CLS] A [SEP] B [SEP]` and then padding; without a B it ends
  after the first [SEP].

  Args:
    a_length: int32 [B], tokens of A.
    length: int32 [B], tokens of the whole row, [CLS] and [SEP] included.
    max_length: L, the row's slots.

  Returns:
    token_type_ids: int32 [B, L], 1 on `B [SEP]` and 0 elsewhere.
    attention_mask: bool [B, L], False on padding.
  """
  slots = jnp.arange(max_length)[None]
  attention_mask = slots < length[:, None]
  in_b = (slots >= a_length[:, None] + 2) & attention_mask
  return in_b.astype(jnp.int32), attention_mask


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


@jax.custom_vjp
def look_up(table, ids):
  """Takes rows of an embedding table.

  As `table[ids]` and its gradient in float32, also where the table is rounded:
  the gradients of a frequent token add up before they are rounded.

  Args:
    table: float [V, D].
    ids: int32 [B, L].

  Returns:
    float32 [B, L, D].
  """
  return table[ids].astype(jnp.float32)


def _look_up_forward(table, ids):
  return look_up(table, ids), (table, ids)


def _look_up_backward(residuals, grad):
  table, ids = residuals
  total = jnp.zeros(table.shape, jnp.float32).at[ids].add(grad)
  return total.astype(table.dtype), None


look_up.defvjp(_look_up_forward, _look_up_backward)


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


@dataclasses.dataclass(frozen=True)
class BertConfig:
  """Architecture, in Hugging Face's words; the defaults are BERT-base.

  Attributes:
    vocab_size: tokens in the vocabulary.
    hidden_size: D, a multiple of the head count.
    num_hidden_layers: encoder blocks.
    num_attention_heads: N.
    intermediate_size: F.
    hidden_act: "gelu" (erf) or "gelu_new" (tanh, as the original code).
    hidden_dropout_prob: after the embeddings and both sublayers.
    attention_probs_dropout_prob: on the attention probabilities.
    max_position_embeddings: longest sequence.
    type_vocab_size: T.
    initializer_range: sigma of the truncated normal, before the cut.
    layer_norm_eps: added to the variance.
    dtype: of the layers' arithmetic; parameters, LayerNorm statistics,
      softmax and logits are float32 whatever it says.
  """

  vocab_size: int
  hidden_size: int = 768
  num_hidden_layers: int = 12
  num_attention_heads: int = 12
  intermediate_size: int = 3072
  hidden_act: str = "gelu"
  hidden_dropout_prob: float = 0.1
  attention_probs_dropout_prob: float = 0.1
  max_position_embeddings: int = 512
  type_vocab_size: int = 2
  initializer_range: float = 0.02
  layer_norm_eps: float = 1e-12
  dtype: str = "float32"

  @property
  def padded_vocab_size(self):
    """Rows of the embedding table on the device."""
    return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

  @property
  def head_size(self):
    """H."""
    return self.hidden_size // self.num_attention_heads

  @property
  def kernel_init(self):
    """Initializer of every matrix: a normal cut at two sigma.

    The cut is not corrected for, so the standard deviation comes out as 0.88
    of `initializer_range`, as in the original code.
    """
    return nn.initializers.truncated_normal(self.initializer_range)


class BertEmbeddings(nn.Module):
  """Word, position and segment embeddings, summed and normalised."""

  config: BertConfig

  def setup(self):
    """Declares the three tables as plain arrays; the heads reuse the first."""
    config, width = self.config, self.config.hidden_size

    def init_padded(key, shape):
      # Padding rows are zero: the other rows do not depend on their number.
      rows = config.kernel_init(key, (config.vocab_size, width))
      return jnp.pad(rows, ((0, shape[0] - config.vocab_size), (0, 0)))

    self.word_embeddings = self.param(
      "word_embeddings", init_padded, (config.padded_vocab_size, width)
    )
    self.position_embeddings = self.param(
      "position_embeddings",
      config.kernel_init,
      (config.max_position_embeddings, width),
    )
    self.token_type_embeddings = self.param(
      "token_type_embeddings",
      config.kernel_init,
      (config.type_vocab_size, width),
    )
    self.LayerNorm = create_layer_norm(config)

  def __call__(self, input_ids, token_type_ids, *, deterministic):
    """Embeds tokens.

    Args:
      input_ids: int32 [B, L].
      token_type_ids: int32 [B, L].
      deterministic: if True, no dropout and no "dropout" RNG is needed.

    Returns:
      float [B, L, D].
    """
    # A product with one-hot rows: a gather from so few rows would turn into
    # a slow scatter in the gradient.
    types = nn.one_hot(token_type_ids, self.config.type_vocab_size)
    x = (
      look_up(self.word_embeddings, input_ids)
      + self.position_embeddings[None, : input_ids.shape[1]]
      + jnp.einsum("BLT,TD->BLD", types, self.token_type_embeddings)
    )
    key = None if deterministic else self.make_rng("dropout")
    return dropout(self.LayerNorm(x), self.config.hidden_dropout_prob, key)


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


class BertPooler(nn.Module):
  """One vector for the whole sequence, read off [CLS]."""

  config: BertConfig

  @nn.compact
  def __call__(self, x):
    """Maps float [B, L, D] to float [B, D], within -1 and 1."""
    config = self.config
    return nn.tanh(
      create_dense(config, config.hidden_size, -1, "dense")(x[:, 0])
    )


class BertModel(nn.Module):
  """The body: embeddings, encoder and, if wanted, the pooler.

  Attributes:
    config: architecture.
    add_pooling_layer: False for tasks that only look at tokens.
  """

  config: BertConfig
  add_pooling_layer: bool = True

  def setup(self):
    """Declares the parts; heads reach the word embeddings through them."""
    self.embeddings = BertEmbeddings(self.config)
    self.encoder = BertEncoder(self.config)
    if self.add_pooling_layer:
      self.pooler = BertPooler(self.config)

  def __call__(
    self, input_ids, token_type_ids, attention_mask, *, deterministic
  ):
    """Encodes a padded batch.

    Args:
      input_ids: int32 [B, L], below `vocab_size`.
      token_type_ids: int32 [B, L], below T.
      attention_mask: bool [B, L]; False marks padding.
      deterministic: if True, no dropout and no "dropout" RNG is needed.

    Returns:
      hidden_states: tuple of float [B, L, D]: the embeddings, then every
        block's output; the last one is the encoding.
      pooled: float [B, D], or None without the pooler.
    """
    x = self.embeddings(input_ids, token_type_ids, deterministic=deterministic)
    hidden_states = self.encoder(x, attention_mask, deterministic=deterministic)
    if not self.add_pooling_layer:
      return hidden_states, None
    return hidden_states, self.pooler(hidden_states[-1])


class PredictionTransform(nn.Module):
  """What the masked-LM head does before it meets the vocabulary."""

  config: BertConfig

  @nn.compact
  def __call__(self, x):
    """Maps float [B, K, D] to the same."""
    config = self.config
    x = create_dense(config, config.hidden_size, -1, "dense")(x)
    return create_layer_norm(config)(ACTIVATIONS[config.hidden_act](x))


class MaskedLMHead(nn.Module):
  """Scores every token of the vocabulary with the tied embeddings."""

  config: BertConfig

  @nn.compact
  def __call__(self, x, word_embeddings):
    """Scores the vocabulary.

    Args:
      x: float [B, K, D].
      word_embeddings: float32 [V, D].

    Returns:
      float32 [B, K, V]; the padding entries are `NEVER`.
    """
    config = self.config
    x = PredictionTransform(config, name="transform")(x)
    bias = self.param(
      "bias", nn.initializers.zeros, (config.padded_vocab_size,)
    )
    logits = jnp.einsum(
      "BKD,VD->BKV",
      x,
      word_embeddings.astype(x.dtype),
      preferred_element_type=jnp.float32,
    )
    real = jnp.arange(config.padded_vocab_size) < config.vocab_size
    return jnp.where(real[None, None], logits + bias[None, None], NEVER)


class PreTrainingHeads(nn.Module):
  """The two heads of pretraining."""

  config: BertConfig

  @nn.compact
  def __call__(self, x, pooled, word_embeddings):
    """Scores masked tokens and sentence pairs.

    Args:
      x: float [B, K, D], the encodings of the masked positions.
      pooled: float [B, D].
      word_embeddings: float32 [V, D].

    Returns:
      mlm_logits: float32 [B, K, V].
      nsp_logits: float32 [B, 2].
    """
    mlm_logits = MaskedLMHead(self.config, name="predictions")(
      x, word_embeddings
    )
    nsp_head = nn.Dense(
      2,
      dtype=jnp.float32,
      kernel_init=self.config.kernel_init,
      name="seq_relationship",
    )
    return mlm_logits, nsp_head(pooled)


class BertForPreTraining(nn.Module):
  """BERT with the masked-LM and next-sentence heads (section 3.1)."""

  config: BertConfig

  def setup(self):
    """Declares body and heads under Hugging Face's names."""
    self.bert = BertModel(self.config)
    self.cls = PreTrainingHeads(self.config)

  def __call__(
    self,
    input_ids,
    token_type_ids,
    attention_mask,
    masked_lm_positions,
    *,
    deterministic,
  ):
    """Predicts masked tokens and whether B follows A.

    Args:
      input_ids: int32 [B, L], below `vocab_size`.
      token_type_ids: int32 [B, L], below T.
      attention_mask: bool [B, L]; False marks padding.
      masked_lm_positions: int32 [B, K]; only these are scored.
      deterministic: if True, no dropout and no "dropout" RNG is needed.

    Returns:
      mlm_logits: float32 [B, K, V]; the padding entries are `NEVER`.
      nsp_logits: float32 [B, 2]; label 0 is "next", 1 is "random".
    """
    hidden_states, pooled = self.bert(
      input_ids, token_type_ids, attention_mask, deterministic=deterministic
    )
    x = jnp.take_along_axis(
      hidden_states[-1], masked_lm_positions[:, :, None], axis=1
    )
    return self.cls(x, pooled, self.bert.embeddings.word_embeddings)
