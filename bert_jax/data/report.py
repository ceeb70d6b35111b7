"""What is in a prepared corpus, and how far it goes with a run's settings."""

import numpy as np

from bert_jax.data.corpus import split_documents
from bert_jax.data.examples import Examples
from bert_jax.errors import UserError

_COUNTED_TOKENS = 2**24  # at once
_REPORT_EXAMPLES = 20_000


def create_report(config, corpus):
  """Measures a corpus for the settings it will be trained with.

  Args:
    config: validated settings.
    corpus: `Corpus`.

  Returns:
    JSON-able dict; rates are shares of 1.

  Raises:
    UserError: too few documents, or a batch larger than a pass.
  """
  manifest = corpus.manifest
  counts = _token_counts(corpus)
  continues = np.array([t.startswith("##") for t in corpus.vocab])
  num_words = int(counts[~continues].sum())
  report = {
    "num_documents": manifest["num_documents"],
    "num_duplicate_documents": manifest["num_duplicate_documents"],
    "num_short_documents": manifest["num_short_documents"],
    "num_text_bytes": manifest["num_text_bytes"],
    "num_sentences": manifest["num_sentences"],
    "num_words": num_words,
    "num_tokens": manifest["num_tokens"],
    "vocab_size": len(corpus.vocab),
    "tokens_per_word": int(counts.sum()) / max(num_words, 1),
    "unknown_rate": int(counts[corpus.vocab.index("[UNK]")])
    / max(int(counts.sum()), 1),
  }
  training, held_out = split_documents(
    corpus.documents, config.corpus.eval_fraction
  )
  report["num_held_out_documents"] = len(held_out)
  for number, name in enumerate(("phase1", "phase2"), start=1):
    phase = config[name]
    if phase.num_steps:
      report[name] = _phase_report(config, corpus, training, phase, number)
  return report


def _token_counts(corpus):
  """Returns how often each id occurs in kept documents, int64 [vocabulary]."""
  starts = corpus.documents["start"]
  ends = starts + corpus.documents["num_tokens"]
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


def _phase_report(config, corpus, documents, phase, number):
  examples = Examples(
    corpus, documents, phase.max_seq_length, config.seed, number
  )
  if examples.examples_per_pass < phase.batch_size:
    raise UserError(
      f"phase{number}.batch_size is {phase.batch_size}, but the text gives only"
      f" {examples.examples_per_pass} examples of length "
      f"{phase.max_seq_length}; expected at most that, or more text"
    )
  pairs = examples.pairs(np.arange(_REPORT_EXAMPLES))
  lengths = (pairs.a_length + pairs.b_length + 3)[~pairs.is_short]
  return {
    "max_seq_length": phase.max_seq_length,
    "examples_per_pass": examples.examples_per_pass,
    "predicted_passes": phase.num_steps
    * phase.batch_size
    / examples.examples_per_pass,
    "not_next_rate": float(pairs.is_random.mean()),
    "fill": float(lengths.mean() / phase.max_seq_length),
  }


def print_report(report):
  """Prints what `create_report` returned, for people."""
  print(
    f"corpus: {report['num_documents']:,} documents "
    f"({report['num_held_out_documents']:,} held out; "
    f"{report['num_duplicate_documents']:,} duplicates and "
    f"{report['num_short_documents']:,} too short dropped), "
    f"{report['num_sentences']:,} sentences, {report['num_words']:,} words, "
    f"{report['num_tokens']:,} tokens"
  )
  print(
    f"corpus: vocabulary of {report['vocab_size']:,}, "
    f"{report['tokens_per_word']:.4f} tokens per word, "
    f"{report['unknown_rate']:.4%} unknown"
  )
  for name in ("phase1", "phase2"):
    if name in report:
      phase = report[name]
      print(
        f"corpus: {name} at length {phase['max_seq_length']}: "
        f"{phase['examples_per_pass']:,} examples a pass, "
        f"{phase['predicted_passes']:,.1f} passes, "
        f"{phase['not_next_rate']:.4f} NotNext, fill {phase['fill']:.4f}"
      )
