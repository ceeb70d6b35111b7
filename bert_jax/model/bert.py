"""BERT (Devlin et al. 2018, section 3) as thin linen modules.

`encoder.py` has the transformer blocks; here are the embeddings before them and
the pretraining heads after them. `bert_config.py` has the sizes.

Parameters are nested dicts of float32 arrays under Hugging Face's names, so
that `weights/hf.py` is a table. Every module's `config` is the architecture.
Shapes, in docstrings and einsums:

  B batch      L length            K predictions a sequence
  D hidden     N attention heads   H head size (D = N * H)
  F feed-forward                   V vocabulary, padded (`padded_vocab_size`)
  T token types                    G copies of the word embeddings
  R predictions a copy (B * K / G)
"""

import flax.traverse_util
import jax
import jax.numpy as jnp
from flax import linen as nn

from bert_jax.model.activations import ACTIVATIONS
from bert_jax.model.bert_config import BertConfig
from bert_jax.model.dropout import draw_seeds, dropout
from bert_jax.model.encoder import (
  DROPOUTS_A_LAYER,
  BertEncoder,
  Dense,
  create_layer_norm,
)
from bert_jax.model.matmul import add_bias, einsum
from bert_jax.sharding.devices import copy_to_devices

# Logit of the vocabulary's padding: far below every real one, and finite, since
# inf - inf would be NaN.
NEVER = -1e9


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


def count_params(params, config):
  """Counts the parameters of a model.

  Args:
    params: nested dict of arrays of a model with `BertModel` in it.
    config: `BertConfig`.

  Returns:
    int; the padding of the vocabulary is left out, as it is at export.
  """
  padding = config.padded_vocab_size - config.vocab_size
  total = 0
  for path, leaf in flax.traverse_util.flatten_dict(params, sep="/").items():
    total += leaf.size
    if path.endswith(("word_embeddings", "cls/predictions/bias")):
      total -= padding * leaf.size // leaf.shape[0]
  return total


def segment_inputs(a_length, length, max_length):
  """Computes segment ids and attention mask from the lengths of texts.

  A sequence is `[CLS] A [SEP] B [SEP]` and padding, or `[CLS] A [SEP]` and
  padding.

  Args:
    a_length: int32 [B], tokens of A.
    length: int32 [B], tokens of the sequence, [CLS] and [SEP] included.
    max_length: L, with padding.

  Returns:
    token_type_ids: int32 [B, L], 1 on `B [SEP]` and 0 elsewhere.
    attention_mask: bool [B, L], False on padding.
  """
  slots = jnp.arange(max_length)[None]
  attention_mask = slots < length[:, None]
  in_b = (slots >= a_length[:, None] + 2) & attention_mask
  return in_b.astype(jnp.int32), attention_mask


@jax.custom_vjp
def look_up(tables, ids):
  """Looks up rows of an embedding table.

  Same as `table[ids]`, but the gradient is summed in float32 even if the table
  is bfloat16, so that a frequent token's gradient is rounded once.

  Args:
    tables: float [G, V, D], see `devices.copy_to_devices`.
    ids: int32 [B, L], B a multiple of G.

  Returns:
    float32 [B, L, D].
  """
  rows = jax.vmap(lambda table, ids: table[ids])(tables, _by_part(ids, tables))
  return rows.reshape(*ids.shape, -1).astype(jnp.float32)


def _look_up_forward(tables, ids):
  return look_up(tables, ids), (tables, ids)


def _look_up_backward(residuals, grad):
  tables, ids = residuals
  totals = jax.vmap(
    lambda table, ids, grad: jnp.zeros_like(table).at[ids].add(grad)
  )(tables.astype(jnp.float32), _by_part(ids, tables), _by_part(grad, tables))
  return totals.astype(tables.dtype), None


look_up.defvjp(_look_up_forward, _look_up_backward)


def _by_part(rows, tables):
  """Splits float or int [B, ...] to [G, B / G, ...], a part per table copy."""
  return rows.reshape(len(tables), -1, *rows.shape[1:])


class BertEmbeddings(nn.Module):
  """Word, position and segment embeddings, summed and normalised."""

  config: BertConfig

  def setup(self):
    """Declares the three tables; the masked-LM head reuses the first."""
    config, width = self.config, self.config.hidden_size

    def init_padded(key, shape):
      # Zeros for padding, so that real rows do not depend on how much there is.
      rows = config.kernel_init(key, (config.vocab_size, width))
      return jnp.pad(rows, ((0, shape[0] - config.vocab_size), (0, 0)))

    self.word_embeddings = copy_to_devices(
      self.param(
        "word_embeddings", init_padded, (config.padded_vocab_size, width)
      )
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

  def __call__(self, input_ids, token_type_ids, dropout_seeds):
    """Embeds tokens.

    Args:
      input_ids: int32 [B, L].
      token_type_ids: int32 [B, L].
      dropout_seeds: int32 [2, B], see `dropout.draw_seeds`, or None for none.

    Returns:
      float [B, L, D].
    """
    # Multiplied by one-hot rows, since the gradient of a lookup in so small a
    # table is a slow scatter.
    types = nn.one_hot(token_type_ids, self.config.type_vocab_size)
    x = (
      look_up(self.word_embeddings, input_ids)
      + self.position_embeddings[None, : input_ids.shape[1]]
      + jnp.einsum("BLT,TD->BLD", types, self.token_type_embeddings)
    )
    rate = self.config.hidden_dropout_prob
    return dropout(self.LayerNorm(x), rate, dropout_seeds)


class BertPooler(nn.Module):
  """Dense layer and tanh on the encoding of [CLS]."""

  config: BertConfig

  @nn.compact
  def __call__(self, x):
    """Maps float [B, L, D] to float [B, D], within -1 and 1."""
    config = self.config
    return nn.tanh(Dense(config, config.hidden_size, name="dense")(x[:, 0]))


class BertModel(nn.Module):
  """Embeddings, encoder and, if wanted, the pooler.

  Attributes:
    config: architecture.
    add_pooling_layer: False for tasks without a sequence-level output.
  """

  config: BertConfig
  add_pooling_layer: bool = True

  def setup(self):
    """Declares the parts by Hugging Face's names."""
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
    first_seeds, *seeds = draw_seeds(
      None if deterministic else self.make_rng("dropout"),
      1 + DROPOUTS_A_LAYER * self.config.num_hidden_layers,
      len(input_ids),
    )
    x = self.embeddings(input_ids, token_type_ids, first_seeds)
    hidden_states = self.encoder(x, attention_mask, seeds)
    if not self.add_pooling_layer:
      return hidden_states, None
    return hidden_states, self.pooler(hidden_states[-1])


class PredictionTransform(nn.Module):
  """Dense layer, activation and LayerNorm of the masked-LM head."""

  config: BertConfig

  @nn.compact
  def __call__(self, x):
    """Maps float [B, K, D] to the same."""
    config = self.config
    x = Dense(config, config.hidden_size, name="dense")(x)
    return create_layer_norm(config)(ACTIVATIONS[config.hidden_act](x))


class MaskedLMHead(nn.Module):
  """Scores every token of the vocabulary with the tied embeddings."""

  config: BertConfig

  @nn.compact
  def __call__(self, x, word_embeddings):
    """Scores the vocabulary.

    Args:
      x: float [B, K, D].
      word_embeddings: float [G, V, D], see `devices.copy_to_devices`.

    Returns:
      float32 [B, K, V]; the padding entries are `NEVER`.
    """
    config = self.config
    x = PredictionTransform(config, name="transform")(x)
    bias = self.param(
      "bias", nn.initializers.zeros, (config.padded_vocab_size,)
    )
    # B and K in one dimension: K = 20 alone would be padded to 24 on TPUs.
    logits = einsum(
      "GRD,GVD->GRV",
      x.reshape(len(word_embeddings), -1, x.shape[-1]),
      word_embeddings.astype(x.dtype),
      preferred_element_type=jnp.float32,
    )
    real = jnp.arange(config.padded_vocab_size) < config.vocab_size
    logits = add_bias(logits, jnp.where(real, bias, NEVER), x.dtype)
    return logits.reshape(*x.shape[:2], -1)


class PreTrainingHeads(nn.Module):
  """The two heads of pretraining."""

  config: BertConfig

  @nn.compact
  def __call__(self, x, pooled, word_embeddings):
    """Scores masked tokens and sentence pairs.

    Args:
      x: float [B, K, D], the encodings of the masked positions.
      pooled: float [B, D].
      word_embeddings: float [G, V, D], see `devices.copy_to_devices`.

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
