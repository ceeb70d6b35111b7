"""Fills the [MASK] of a text by any pretrained model, without torch."""

import jax
import jax.numpy as jnp

from bert_jax.errors import UserError
from bert_jax.model.bert import BertForPreTraining, create_params
from bert_jax.weights.pretrained import load_init, print_report, take_over


def fill_mask(params, config, tokenizer, text, num_fillings=5):
  """Predicts the first [MASK] of a text.

  Args:
    params: parameters of `BertForPreTraining`.
    config: `BertConfig`.
    tokenizer: `tokenizers.Tokenizer` of the model.
    text: str with a [MASK].
    num_fillings: how many to return.

  Returns:
    list of (token, probability), best first.

  Raises:
    UserError: there is no [MASK] in the text.
  """
  encoding = tokenizer.encode(text)
  if "[MASK]" not in encoding.tokens:
    raise UserError(f"there is no [MASK] in {text!r}; expected one to fill")
  position = encoding.tokens.index("[MASK]")
  logits, _ = BertForPreTraining(config).apply(
    {"params": params},
    jnp.array([encoding.ids]),
    jnp.array([encoding.type_ids]),
    jnp.array([encoding.attention_mask]) == 1,
    jnp.array([[position]]),
    deterministic=True,
  )
  probabilities, ids = jax.lax.top_k(jax.nn.softmax(logits[0, 0]), num_fillings)
  return [
    (tokenizer.id_to_token(int(i)), float(p))
    for i, p in zip(ids, probabilities, strict=True)
  ]


def fill_texts(model, texts):
  """Fills the first [MASK] of each text.

  Args:
    model: workdir or folder of a model, as `load_init` takes it.
    texts: list of str, each with a [MASK].

  Yields:
    (text, list of (token, probability), best first).

  Raises:
    UserError: no such model, no masked-LM head, or a text without a [MASK].
  """
  if not model or not texts:
    raise UserError("expected --model=FOLDER and --text='... [MASK] ...'")
  pretrained = load_init(model)
  config = pretrained.bert_config
  params, fresh = take_over(
    create_params(config, jax.random.key(0)), pretrained
  )
  if pretrained.vocab is None or "cls/predictions/bias" in fresh:
    raise UserError(
      f"{model} has no vocabulary or no masked-LM head; expected both"
    )
  print_report(pretrained, fresh)
  tokenizer = pretrained.create_tokenizer()
  for text in texts:
    yield text, fill_mask(params, config, tokenizer, text)
