"""Token counts of a corpus, and the loss of predicting by frequency alone."""

import numpy as np

_COUNTED_TOKENS = 2**24  # at once


def count_tokens(corpus, documents):
  """Counts the tokens of some documents.

  Args:
    corpus: `Corpus`.
    documents: `DOCUMENT` [N], at least one.

  Returns:
    int64 [vocabulary], how often each id occurs.
  """
  starts = documents["start"]
  ends = starts + documents["num_tokens"]
  # Documents that follow each other without a dropped one make one run.
  breaks = np.flatnonzero(starts[1:] != ends[:-1])
  runs = zip(
    np.concatenate([starts[:1], starts[1:][breaks]]),
    np.concatenate([ends[:-1][breaks], ends[-1:]]),
    strict=True,
  )
  counts = np.zeros(len(corpus.vocab), np.int64)
  for run_start, run_end in runs:
    for start in range(run_start, run_end, _COUNTED_TOKENS):
      tokens = corpus.tokens[start : min(start + _COUNTED_TOKENS, run_end)]
      counts += np.bincount(tokens, minlength=len(counts))
  return counts


def frequency_loss(corpus, training, held_out):
  """Returns the loss of guessing held-out tokens by their frequency alone.

  That is the cross-entropy of the held-out tokens under the frequencies in the
  training text, each count raised by one (Laplace), in nats: what a masked
  language model scores that has learnt nothing of the context.

  Args:
    corpus: `Corpus`.
    training, held_out: `DOCUMENT` arrays.

  Returns:
    float.
  """
  learnt = count_tokens(corpus, training) + 1.0
  seen = count_tokens(corpus, held_out)
  return float(-(seen @ np.log(learnt / learnt.sum())) / seen.sum())
