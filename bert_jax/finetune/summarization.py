"""Extractive summaries: which sentences of a document to keep (BERTSUM).

As in Liu 2019, every sentence has a [CLS] of its own, whose output scores it,
and segments alternate from sentence to sentence. A document too long for the
model is cut between sentences. The labels are those sentences that together
come nearest to the reference summary, found greedily by ROUGE.
"""

import collections
import dataclasses

import numpy as np
import sentencex

from bert_jax.errors import UserError
from bert_jax.finetune import readers, values
from bert_jax.finetune.features import IGNORED, create_features

_ROUGE = ("rouge1", "rouge2", "rougeLsum")


@dataclasses.dataclass(frozen=True)
class Row:
  """A document in sentences.

  Attributes:
    where: source and line.
    sentences: tuple of str.
    oracle: numbers of the sentences to choose; empty where there is no label.
    label: the reference summary, a sentence on each line, or None.
  """

  where: str
  sentences: tuple[str, ...]
  oracle: tuple[int, ...]
  label: str | None


def read_rows(source, config, labelled):
  """Reads documents with their summaries.

  Args:
    source: see `readers.read_records`; a document or a summary is a text or,
      in JSON lines, a list of sentences.
    config: the run's settings.
    labelled: whether every document must have a summary.

  Returns:
    list of `Row`.

  Raises:
    UserError: a document has no sentence, or no summary.
  """
  data, num = config.data, config.task.num_sentences
  if data.format == "lines" and not labelled:
    return [
      Row(where, _sentences(line, where, data.language), (), None)
      for where, line in readers.read_lines(source)
    ]
  rows = []
  for record in readers.read_records(source, data.format, data.header):
    document = record.get(data.text_a)
    sentences = _sentences(document, record.where, data.language)
    summary = (record.get if labelled else record.values.get)(data.label)
    if not summary and not labelled:
      rows.append(Row(record.where, sentences, (), None))
      continue
    label = "\n".join(_sentences(summary, record.where, data.language))
    oracle = choose_greedily(sentences, label, num) if labelled else ()
    rows.append(Row(record.where, sentences, oracle, label))
  return rows


def _sentences(text, where, language):
  """Returns the sentences of a text, or of a list of them."""
  if not isinstance(text, list):
    lines = values.as_text(text or "", where).split("\n")
    text = [s for line in lines for s in sentencex.segment(language, line)]
  stripped = [values.as_text(sentence, where).strip() for sentence in text]
  sentences = tuple(filter(None, stripped))
  if not sentences:
    raise UserError(f"{where} has a text without a sentence; expected some")
  return sentences


def choose_greedily(sentences, summary, num_sentences):
  """Chooses sentences by ROUGE-1 and ROUGE-2, one after the other.

  Args:
    sentences: list of str.
    summary: str, the reference.
    num_sentences: how many at most.

  Returns:
    ascending tuple of int: each choice raises the sum of both F1 as far as one
    sentence can; it ends where none raises it.
  """
  tokenize = _tokenizer().tokenize
  words = [tokenize(sentence) for sentence in sentences]
  wanted = tokenize(summary)
  chosen, best = (), 0.0
  while len(chosen) < num_sentences:
    scored = [
      (_rouge_1_and_2(words, (*chosen, i), wanted), -i)
      for i in range(len(words))
      if i not in chosen
    ]
    score, number = max(scored, default=(0.0, 0))
    if score <= best:
      break
    chosen, best = tuple(sorted((*chosen, -number))), score
  return chosen


def _rouge_1_and_2(words, chosen, wanted):
  """Returns F1 of words plus F1 of pairs of words."""
  text = [word for i in sorted(chosen) for word in words[i]]
  total = 0.0
  for n in (1, 2):
    ours, theirs = _ngrams(text, n), _ngrams(wanted, n)
    common = (ours & theirs).total()
    total += 2 * common / max(1, ours.total() + theirs.total())
  return total


def _ngrams(words, n):
  grams = zip(*(words[i:] for i in range(n)), strict=False)
  return collections.Counter(grams)


def _tokenizer():
  from rouge_score.tokenizers import DefaultTokenizer

  return DefaultTokenizer(use_stemmer=True)


def output_name(rows):
  """Returns a name for the only output."""
  del rows
  return ("in_summary",)


def encode(rows, tokenizer, config):
  """Turns rows to features without labels.

  Args:
    rows: list of `Row`.
    tokenizer: `tokenizers.Tokenizer`.
    config: the run's settings.

  Returns:
    `Features` with token_type_ids; a place is (number of the feature's first
    sentence, int [S] the slots of its sentences' [CLS]).
  """
  data = config.data
  cls, sep = (tokenizer.token_to_id(t) for t in ("[CLS]", "[SEP]"))
  pieces, row_of, places = [], [], []
  for number, row in enumerate(rows):
    encodings = tokenizer.encode_batch(
      list(row.sentences), add_special_tokens=False
    )
    room = data.max_seq_length - 2
    sentences = [[cls, *e.ids[:room], sep] for e in encodings]
    for first, piece in _cut(sentences, data.max_seq_length):
      pieces.append(piece)
      row_of.append(number)
      sizes = [len(sentence) for sentence in piece]
      places.append((first, np.cumsum([0, *sizes])[:-1]))
  features = create_features(
    [[token for sentence in piece for token in sentence] for piece in pieces],
    data,
    row_of=row_of,
    places=places,
  )
  types = np.zeros_like(features.arrays["input_ids"])
  for i, piece in enumerate(pieces):
    segments = np.arange(len(piece)) % 2
    sizes = [len(sentence) for sentence in piece]
    types[i, : sum(sizes)] = np.repeat(segments, sizes)
  arrays = features.arrays | {"token_type_ids": types}
  return dataclasses.replace(features, arrays=arrays)


def _cut(sentences, max_seq_length):
  """Returns pieces of at most so many tokens: (first sentence, sentences)."""
  pieces, first, size = [], 0, 0
  for i, sentence in enumerate(sentences):
    if size + len(sentence) > max_seq_length:
      pieces.append((first, sentences[first:i]))
      first, size = i, 0
    size += len(sentence)
  return [*pieces, (first, sentences[first:])]


def sentence_labels(rows, features, names):
  """Returns int32 [N, L]: 1 or 0 at each [CLS], `IGNORED` elsewhere."""
  del names
  labels = np.full(features.arrays["input_ids"].shape, IGNORED, np.int32)
  for i, (first, slots) in enumerate(features.places):
    oracle = rows[features.row_of[i]].oracle
    numbers = range(first, first + len(slots))
    labels[i, slots] = [number in oracle for number in numbers]
  return labels


def decode(logits, rows, features, names, config):
  """Turns logits [N, L, 1] to predictions.

  Returns:
    list of dicts: summary, a sentence on each line in the document's order,
    sentences (their numbers), and scores (of every sentence, 0 to 1).
  """
  del names
  scores = [[] for _ in rows]
  for i, (_, slots) in enumerate(features.places):
    scores[features.row_of[i]] += logits[i, slots, 0].tolist()
  predictions = []
  for row, of_row in zip(rows, scores, strict=True):
    chosen = choose_best(row.sentences, of_row, config.task.num_sentences)
    predictions.append(
      {
        "summary": "\n".join(row.sentences[i] for i in chosen),
        "sentences": list(chosen),
        "scores": (1 / (1 + np.exp(-np.array(of_row)))).tolist(),
      }
    )
  return predictions


def choose_best(sentences, scores, num_sentences):
  """Chooses the best sentences that repeat no three words of another.

  Args:
    sentences: list of str.
    scores: list of float.
    num_sentences: how many.

  Returns:
    ascending list of int.
  """
  chosen, seen = [], set()
  for i in np.argsort(-np.array(scores), kind="stable").tolist():
    words = sentences[i].lower().split()
    trigrams = set(_ngrams(words, 3))
    if len(chosen) < num_sentences and not trigrams & seen:
      chosen.append(i)
      seen |= trigrams
  return sorted(chosen)


def has_summaries(rows, names):
  """Tells whether every document has a reference summary."""
  del names
  return all(row.label is not None for row in rows)


def score(predictions, rows, names):
  """Returns ROUGE F1 of the summaries, and of as many first sentences.

  Args:
    predictions: list of dicts, as from `decode`.
    rows: list of `Row`.
    names: not used.

  Returns:
    dict of floats; those named lead_ are of the document's beginning.
  """
  from rouge_score.rouge_scorer import RougeScorer

  del names
  scorer = RougeScorer(_ROUGE, use_stemmer=True)
  totals = collections.Counter()
  for prediction, row in zip(predictions, rows, strict=True):
    lead = "\n".join(row.sentences[: len(prediction["sentences"])])
    for prefix, text in (("", prediction["summary"]), ("lead_", lead)):
      for name, value in scorer.score(row.label, text).items():
        totals[prefix + name] += value.fmeasure
  names = [prefix + name for prefix in ("", "lead_") for name in _ROUGE]
  return {name: totals[name] / len(rows) for name in names}
