"""How likely a text is to a masked language model (Salazar et al. 2020).

The pseudo-log-likelihood of a text is the sum, over its tokens, of the log
probability that the model gives to the token when this one alone is masked.
"""

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.inference import batching
from bert_jax.inference.batching import TokenRow
from bert_jax.inference.pretraining_heads import MASKED_LM, load_model


def score_texts(model, texts, batch_size):
  """Scores every token of some texts.

  A text longer than the model's positions is read through windows that share
  half of their tokens; a token is scored where it has the most context.

  Args:
    model: `PretrainingModel`.
    texts: list of str.
    batch_size: masked copies at a time.

  Returns:
    list of (int32 [tokens], float32 [tokens]): token ids and natural log
    probabilities, [CLS] and [SEP] left out.
  """
  tokens = [
    np.array(encoding.ids, np.int32)
    for encoding in model.tokenizer.encode_batch(
      texts, add_special_tokens=False
    )
  ]
  copies, places, targets = _mask(tokens, model)
  cls_row = np.zeros((batch_size, 1), np.int32)

  @jax.jit
  def step(params, ids, a_length, length, positions, targets):
    logits, _ = model.apply(params, ids, a_length, length, positions)
    scores = jax.nn.log_softmax(logits[:, 0])
    return jnp.take_along_axis(scores, targets, axis=1)[:, 0]

  found = np.zeros(len(copies), np.float32)
  for chosen, batch in batching.iterate_batches(
    copies, batch_size, model.max_length
  ):
    positions, wanted = cls_row.copy(), cls_row.copy()
    positions[: len(chosen), 0] = [places[i] for i in chosen]
    wanted[: len(chosen), 0] = [targets[i] for i in chosen]
    scores = np.asarray(step(model.params, *batch, positions, wanted))
    found[chosen] = scores[: len(chosen)]
  ends = np.cumsum([len(ids) for ids in tokens])[:-1]
  return list(zip(tokens, np.split(found, ends), strict=True))


def _mask(tokens, model):
  """Makes a copy of its text for each token, with that token masked.

  Returns:
    (list of `TokenRow`; list of the masked slots; list of the ids that were
    there), in the order of the tokens.
  """
  cls, sep, mask = map(
    model.tokenizer.token_to_id, ("[CLS]", "[SEP]", "[MASK]")
  )
  room = model.max_length - 2
  copies, places, targets = [], [], []
  for ids in tokens:
    for i, target in enumerate(ids):
      first = _window_start(i, len(ids), room)
      window = ids[first : first + room]
      row = np.concatenate([[cls], window, [sep]]).astype(np.int32)
      row[1 + i - first] = mask
      copies.append(TokenRow(row, len(window)))
      places.append(1 + i - first)
      targets.append(target)
  return copies, places, targets


def _window_start(place, size, room):
  """Returns the first token of the window that scores the token at `place`."""
  step = max(1, room // 2)
  # The window whose middle half holds the place, as far as the ends allow.
  first = max(0, place - room // 4) // step * step
  return max(0, min(first, size - room))


def iterate_scores(source, rows, batch_size):
  """Scores the texts of a file.

  Args:
    source: see `pretraining_heads.load_model`.
    rows: iterable of (text, None).
    batch_size: masked copies at a time.

  Yields:
    dict of text, score (the sum), tokens and token_scores.
  """
  model = load_model(source, MASKED_LM)
  # So few that their masked copies stay small.
  for texts in batching.chunks((text for text, _ in rows), 32):
    scored = score_texts(model, texts, batch_size)
    for text, (ids, scores) in zip(texts, scored, strict=True):
      yield {
        "text": text,
        "score": float(scores.sum(dtype=np.float64)),
        "tokens": [model.vocab[i] for i in ids],
        "token_scores": scores.tolist(),
      }
