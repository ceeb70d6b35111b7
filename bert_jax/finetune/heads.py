"""BERT with an output layer for a task; parameters named by Hugging Face."""

import jax.numpy as jnp
from flax import linen as nn

from bert_jax.model.bert import NEVER, BertModel
from bert_jax.model.bert_config import BertConfig
from bert_jax.model.dropout import draw_seeds, dropout
from bert_jax.model.pooling import pool


class BertForSequenceClassification(nn.Module):
  """Scores a sentence or a pair by its [CLS].

  Attributes:
    config: architecture.
    num_labels: K.
  """

  config: BertConfig
  num_labels: int

  @nn.compact
  def __call__(
    self, input_ids, token_type_ids, attention_mask, *, deterministic
  ):
    """Maps tokens, see `BertModel`, to logits, float32 [B, K]."""
    _, x = BertModel(self.config, name="bert")(
      input_ids, token_type_ids, attention_mask, deterministic=deterministic
    )
    key = None if deterministic else self.make_rng("dropout")
    (seeds,) = draw_seeds(key, 1, len(x))
    x = dropout(x, self.config.output_dropout_prob, seeds)
    return _create_output(self.config, self.num_labels, "classifier")(x)


class BertForTokenClassification(nn.Module):
  """Scores every token.

  Attributes:
    config: architecture.
    num_labels: K.
  """

  config: BertConfig
  num_labels: int

  @nn.compact
  def __call__(
    self, input_ids, token_type_ids, attention_mask, *, deterministic
  ):
    """Maps tokens, see `BertModel`, to logits, float32 [B, L, K]."""
    body = BertModel(self.config, add_pooling_layer=False, name="bert")
    hidden_states, _ = body(
      input_ids, token_type_ids, attention_mask, deterministic=deterministic
    )
    key = None if deterministic else self.make_rng("dropout")
    (seeds,) = draw_seeds(key, 1, len(input_ids))
    x = dropout(hidden_states[-1], self.config.output_dropout_prob, seeds)
    return _create_output(self.config, self.num_labels, "classifier")(x)


class BertForQuestionAnswering(nn.Module):
  """Scores every token as the start and as the end of an answer.

  Attributes:
    config: architecture.
    num_labels: 2, start and end.
  """

  config: BertConfig
  num_labels: int = 2

  @nn.compact
  def __call__(
    self, input_ids, token_type_ids, attention_mask, *, deterministic
  ):
    """Maps tokens, see `BertModel`, to logits, float32 [B, 2, L].

    Padding has `NEVER`, so that a loss does not depend on its slots.
    """
    body = BertModel(self.config, add_pooling_layer=False, name="bert")
    hidden_states, _ = body(
      input_ids, token_type_ids, attention_mask, deterministic=deterministic
    )
    output = _create_output(self.config, self.num_labels, "qa_outputs")
    logits = output(hidden_states[-1]).swapaxes(1, 2)
    return jnp.where(attention_mask[:, None], logits, NEVER)


class SentenceEncoder(nn.Module):
  """One vector for a text; there is no output layer.

  Attributes:
    config: architecture.
    pooling: "mean" of the tokens' vectors, or "cls".
  """

  config: BertConfig
  pooling: str

  @nn.compact
  def __call__(
    self, input_ids, token_type_ids, attention_mask, *, deterministic
  ):
    """Maps tokens, see `BertModel`, to vectors, float32 [B, D]."""
    # The pooler is not used; transformers' BertModel has one.
    hidden_states, _ = BertModel(self.config, name="bert")(
      input_ids, token_type_ids, attention_mask, deterministic=deterministic
    )
    return pool(hidden_states[-1], attention_mask, self.pooling)


def _create_output(config, num_labels, name):
  return nn.Dense(
    num_labels, dtype=jnp.float32, kernel_init=config.kernel_init, name=name
  )
