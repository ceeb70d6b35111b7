"""Words to tags: each word's tag is read off its first sub-token.

A sentence too long for the model is cut between words, so that every word has
a prediction.
"""

import dataclasses

import numpy as np

from bert_jax.errors import UserError
from bert_jax.finetune import metrics, readers
from bert_jax.finetune.features import IGNORED, create_features
from bert_jax.finetune.sequences import find_label
from bert_jax.finetune.values import sort_names


@dataclasses.dataclass(frozen=True)
class Row:
  """A sentence in words.

  Attributes:
    where: source and line.
    words: tuple of str.
    label: tuple of str, a tag for each word, or None.
  """

  where: str
  words: tuple[str, ...]
  label: tuple[str, ...] | None


def read_rows(source, config, labelled):
  """Reads sentences with their tags.

  Args:
    source: see `readers.read_records`; in JSON lines and tfds the columns hold
      lists.
    config: the run's settings.
    labelled: whether every row must have tags.

  Returns:
    list of `Row`.

  Raises:
    UserError: a row has no tags, or not as many as words.
  """
  data = config.data
  if data.format == "lines" and not labelled:
    lines = readers.read_lines(source)
    return [Row(where, tuple(line.split()), None) for where, line in lines]
  rows = []
  for record in readers.read_records(source, data.format, default="conll"):
    words = record.texts(data.text_a)
    if not labelled and data.label not in record.values:
      rows.append(Row(record.where, words, None))
      continue
    tags = record.texts(data.label)
    if len(tags) != len(words):
      raise UserError(
        f"{record.where} has {len(words)} words and {len(tags)} tags; expected "
        "as many of both"
      )
    rows.append(Row(record.where, words, tags))
  if labelled and not any(row.words for row in rows):
    raise UserError(f"{source} has no words in any row; expected some")
  return rows


def tag_names(rows):
  """Returns the tags of labelled rows, "O" first, the others sorted."""
  names = sort_names({tag for row in rows for tag in row.label})
  return tuple(sorted(names, key=lambda name: name != "O"))


def encode(rows, tokenizer, config):
  """Turns rows to features without labels.

  Args:
    rows: list of `Row`.
    tokenizer: `tokenizers.Tokenizer`.
    config: the run's settings.

  Returns:
    `Features`; a place is (number of the feature's first word, int [W] the
    slots of its words' first sub-tokens).
  """
  special = {t: tokenizer.token_to_id(t) for t in ("[CLS]", "[SEP]", "[UNK]")}
  room = config.data.max_seq_length - 2
  encodings = tokenizer.encode_batch(
    [list(row.words) for row in rows],
    is_pretokenized=True,
    add_special_tokens=False,
  )
  token_ids, row_of, places = [], [], []
  for number, (row, encoding) in enumerate(zip(rows, encodings, strict=True)):
    words = [[] for _ in row.words]
    for token, word in zip(encoding.ids, encoding.word_ids, strict=True):
      words[word].append(token)
    # A word of nothing but control characters has no tokens.
    words = [word[:room] or [special["[UNK]"]] for word in words]
    for first, piece in _cut(words, room):
      sizes = [len(word) for word in piece]
      slots = 1 + np.cumsum([0, *sizes])[:-1]
      tokens = [token for word in piece for token in word]
      token_ids.append([special["[CLS]"], *tokens, special["[SEP]"]])
      row_of.append(number)
      places.append((first, slots))
  return create_features(token_ids, config.data, row_of=row_of, places=places)


def _cut(words, room):
  """Cuts words into pieces of at most `room` tokens.

  Returns:
    list of (number of the first word, list of words), at least one.
  """
  pieces, first, size = [], 0, 0
  for i, word in enumerate(words):
    if size + len(word) > room:
      pieces.append((first, words[first:i]))
      first, size = i, 0
    size += len(word)
  return [*pieces, (first, words[first:])]


def tag_labels(rows, features, names):
  """Returns int32 [N, L], tags at first sub-tokens, `IGNORED` elsewhere."""
  labels = np.full(features.arrays["input_ids"].shape, IGNORED, np.int32)
  for i, (first, slots) in enumerate(features.places):
    row = rows[features.row_of[i]]
    tags = row.label[first : first + len(slots)]
    labels[i, slots] = [find_label(tag, names, row) for tag in tags]
  return labels


def has_known_tags(rows, names):
  """Tells whether every row has tags.

  Raises:
    UserError: a tag is not the model's: a file read as what it is not would
      otherwise be predicted as if words were tags.
  """
  for row in rows:
    for tag in row.label or ():
      if tag not in names:
        raise UserError(
          f"{row.where} has tag {tag!r}; expected one of {', '.join(names)} "
          "(a file with a sentence on each line: --format=lines)"
        )
  return all(row.label is not None for row in rows)


def decode(logits, rows, features, names, config):
  """Turns logits [N, L, K] to predictions: words and tags of each row."""
  del config
  tags = [[] for _ in rows]
  for i, (_, slots) in enumerate(features.places):
    best = logits[i, slots].argmax(-1) if len(slots) else []
    tags[features.row_of[i]] += [names[k] for k in best]
  return [
    {"words": list(row.words), "tags": row_tags}
    for row, row_tags in zip(rows, tags, strict=True)
  ]


def score(predictions, rows, names):
  """Returns the metrics of tagging."""
  return metrics.tagging_metrics(
    [list(row.label) for row in rows], [p["tags"] for p in predictions], names
  )
