"""Adds vocabulary entries or positions to a pretrained model."""

import dataclasses

import jax
import numpy as np

from bert_jax.data.vocabulary import split_piece
from bert_jax.errors import UserError


def extend_vocab(pretrained, vocab):
  """Adds pieces to a model's vocabulary.

  A new piece's embedding and output bias are the means of those of the pieces
  that spelled it before: its logit starts as the mean of their logits.

  Args:
    pretrained: `Pretrained`.
    vocab: its vocabulary and new pieces after it.

  Returns:
    `Pretrained` with that vocabulary.

  Raises:
    UserError: `vocab` does not begin with the model's vocabulary.
  """
  old = pretrained.vocab
  if vocab[: len(old)] != old:
    raise UserError(
      f"the vocabulary of {pretrained.source} has changed; expected the one "
      f"this run was begun with (init_vocab.txt in its workdir)"
    )
  if len(vocab) == len(old):
    return pretrained
  num_new = len(vocab) - len(old)
  ids = {token: i for i, token in enumerate(old)}
  spellings = [
    [ids[p] for p in split_piece(new, ids)] for new in vocab[len(old) :]
  ]
  config = dataclasses.replace(pretrained.bert_config, vocab_size=len(vocab))

  def add_rows(array):
    rows = np.zeros((config.padded_vocab_size, *array.shape[1:]), np.float32)
    rows[: len(old)] = array[: len(old)]
    for row, spelling in enumerate(spellings, start=len(old)):
      rows[row] = array[spelling].mean(0)
    return rows

  params = jax.tree.map(lambda x: x, pretrained.params)  # new dicts
  embeddings = params["bert"]["embeddings"]
  embeddings["word_embeddings"] = add_rows(embeddings["word_embeddings"])
  predictions = params.get("cls", {}).get("predictions", {})
  if "bias" in predictions:
    predictions["bias"] = add_rows(predictions["bias"])
  return dataclasses.replace(
    pretrained,
    bert_config=config,
    params=params,
    vocab=vocab,
    notes=(
      *pretrained.notes,
      f"{num_new:,} new pieces start as the mean of their old ones",
    ),
  )


def extend_positions(pretrained, num_positions):
  """Adds positions to a model, for longer sequences.

  The old ones are copied as they are. The new ones run once more through the
  old table, interpolated linearly where their number is another: with twice the
  positions each old row is there twice (Beltagy et al. 2020, section 5).

  Args:
    pretrained: `Pretrained`.
    num_positions: positions of the result; 0 keeps the model's.

  Returns:
    `Pretrained`.

  Raises:
    UserError: the model has that many or more.
  """
  old = pretrained.bert_config.max_position_embeddings
  if not num_positions:
    return pretrained
  if num_positions <= old:
    raise UserError(
      f"--extend_positions={num_positions}, but {pretrained.source} has {old} "
      "positions; expected more"
    )
  table = pretrained.params["bert"]["embeddings"]["position_embeddings"]
  num_new = num_positions - old
  # Where in the old table each new row lies.
  places = np.linspace(0, old - 1, num_new)
  below = places.astype(int)
  above = np.minimum(below + 1, old - 1)
  share = (places - below)[:, None]
  new = (1 - share) * table[below] + share * table[above]
  params = jax.tree.map(lambda x: x, pretrained.params)  # new dicts
  params["bert"]["embeddings"]["position_embeddings"] = np.concatenate(
    [table, new.astype(np.float32)]
  )
  how = "repeat them" if num_new == old else "are interpolated from them"
  return dataclasses.replace(
    pretrained,
    bert_config=dataclasses.replace(
      pretrained.bert_config, max_position_embeddings=num_positions
    ),
    params=params,
    max_length=num_positions,
    notes=(
      *pretrained.notes,
      f"positions 0 to {old - 1} are copied, {old} to {num_positions - 1} "
      f"{how}",
    ),
  )
