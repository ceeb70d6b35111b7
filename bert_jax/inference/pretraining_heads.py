"""A BERT with its pretraining heads, ready to judge texts without torch."""

import dataclasses

import jax
import jax.numpy as jnp
import tokenizers

from bert_jax.errors import UserError
from bert_jax.inference import batching
from bert_jax.model.bert import (
  BertForPreTraining,
  segment_inputs,
)
from bert_jax.model.bert_config import BertConfig
from bert_jax.weights.parameters import fill_with_zeros
from bert_jax.weights.pretrained import load_init, print_report

# What each head is called, and where its parameters lie.
MASKED_LM = ("masked-LM", "cls/predictions")
NEXT_SENTENCE = ("next-sentence", ("bert/pooler", "cls/seq_relationship"))


@dataclasses.dataclass(frozen=True)
class PretrainingModel:
  """A model with the heads of pretraining.

  Attributes:
    source: what the user named.
    config: `BertConfig`.
    params: parameters of `BertForPreTraining`.
    tokenizer: `tokenizers.Tokenizer`; it does not cut.
    vocab: list of str.
    max_length: longest row, in tokens.
  """

  source: str
  config: BertConfig
  params: dict
  tokenizer: tokenizers.Tokenizer
  vocab: list[str]
  max_length: int

  def apply(self, params, input_ids, a_length, length, positions):
    """Scores positions and pairs, see `BertForPreTraining`, without dropout."""
    types, mask = segment_inputs(a_length, length, input_ids.shape[1])
    return BertForPreTraining(self.config).apply(
      {"params": params}, input_ids, types, mask, positions, deterministic=True
    )

  def encode(self, text, pair=None):
    """Turns a text or a pair to a `TokenRow`.

    Raises:
      UserError: it is longer than the model's positions.
    """
    row = batching.encode(self.tokenizer, text, pair)
    if len(row.ids) > self.max_length:
      raise UserError(
        f"{text[:40]!r}... has {len(row.ids):,} tokens; expected at most "
        f"{self.max_length}, the positions of {self.source}"
      )
    return row


def load_model(source, head):
  """Reads a model and tells what was found.

  Args:
    source: workdir or folder of a model, as `load_init` takes it.
    head: the head that is needed, `MASKED_LM` or `NEXT_SENTENCE`.

  Returns:
    `PretrainingModel`.

  Raises:
    UserError: no such model, no vocabulary, not that head, or one that
      computes something else.
  """
  if not source:
    raise UserError("--model is missing; expected a folder")
  pretrained = load_init(source)
  config = pretrained.bert_config
  params, fresh = fill_with_zeros(pretrained.params, config)
  params = jax.tree.map(jnp.asarray, params)
  name, paths = head
  print_report(pretrained, fresh)
  if pretrained.vocab is None or any(p.startswith(paths) for p in fresh):
    raise UserError(
      f"{source} has no vocabulary or no {name} head; expected both"
    )
  untied = [n for n in pretrained.unused if "predictions.decoder" in n]
  if head == MASKED_LM and untied:
    raise UserError(
      f"{source} has a {untied[0]} of its own; expected the word embeddings "
      "there (tie_word_embeddings: true)"
    )
  if head == NEXT_SENTENCE:
    pretrained.check_pairs()
  return PretrainingModel(
    source=source,
    config=config,
    params=params,
    tokenizer=pretrained.create_tokenizer(),
    vocab=pretrained.vocab,
    max_length=config.max_position_embeddings,
  )
