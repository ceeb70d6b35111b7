"""What is in a prepared corpus, and how far it goes with a run's settings."""

import numpy as np

from bert_jax.config import PHASES, active_phases
from bert_jax.data.corpus import split_documents
from bert_jax.data.examples import Examples
from bert_jax.data.mixing import source_weights, training_documents
from bert_jax.data.word_frequency import count_tokens
from bert_jax.data.writing import duplicates
from bert_jax.errors import UserError

_FROM_MANIFEST = (
  "num_documents",
  "num_duplicate_documents",
  "num_near_duplicates_dropped",
  "num_short_documents",
  "num_skipped_rows",
  "num_text_bytes",
  "num_characters",
  "num_lost_characters",
  "num_spelled_special_tokens",
  "num_lines",
  "num_wrapped_lines",
  "num_sentences",
  "num_tokens",
)
# Shares past which the report warns.
_MANY = 0.4  # of the lines
_LOST_CHARACTERS = 0.002  # of the characters
_DUPLICATES = 0.05  # of the documents
_LOW_FILL = 0.6  # of a sequence
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
  counts = count_tokens(corpus, corpus.documents)
  continues = np.array([t.startswith("##") for t in corpus.vocab])
  num_words = int(counts[~continues].sum())
  num_tokens = max(int(counts.sum()), 1)
  training, held_out = split_documents(
    corpus.documents, config.corpus.eval_fraction
  )
  report = {name: manifest.get(name, 0) for name in _FROM_MANIFEST}
  report |= {
    "num_words": num_words,
    "vocab_size": len(corpus.vocab),
    "tokens_per_word": num_tokens / max(num_words, 1),
    "unknown_rate": int(counts[corpus.vocab.index("[UNK]")]) / num_tokens,
    "lost_characters_rate": manifest.get("num_lost_characters", 0)
    / max(manifest.get("num_characters", 0), 1),
    "num_held_out_documents": len(held_out),
    "held_out_token_rate": int(held_out["num_tokens"].sum()) / num_tokens,
    "sources": _source_reports(config, corpus, training, held_out),
  }
  is_held_out = np.isin(corpus.documents["hash"], held_out["hash"])
  report |= duplicates.count_near_duplicates(
    corpus.tokens, corpus.documents, is_held_out
  )
  weighed = training_documents(config.corpus, corpus)
  for name in active_phases(config):
    report[name] = _phase_report(config, corpus, weighed, name)
  report["warnings"] = _warnings(config, report)
  return report


def _source_reports(config, corpus, training, held_out):
  """Returns a dict for each entry of `corpus.source`."""
  weights = source_weights(config.corpus, corpus, training)
  return [
    entry
    | {
      "weight": float(weights[number]),
      "num_documents": int((corpus.documents["source"] == number).sum()),
      "num_tokens": _num_tokens(corpus.documents, number),
      "num_held_out_documents": int((held_out["source"] == number).sum()),
      "num_held_out_tokens": _num_tokens(held_out, number),
    }
    for number, entry in enumerate(corpus.manifest["entries"])
  ]


def _num_tokens(documents, source):
  return int(documents["num_tokens"][documents["source"] == source].sum())


def _warnings(config, report):
  """Returns what is wrong with a corpus, a list of lines."""
  found = []
  setting = "--config.corpus."
  num_seen = report["num_documents"] + report["num_duplicate_documents"]
  wrapped = report["num_wrapped_lines"] / max(report["num_lines"], 1)
  lost = report["lost_characters_rate"]
  copies = report["num_duplicate_documents"] / num_seen
  near = report["num_near_duplicates"] / report["num_compared_documents"]
  leaked = report["num_leaked"] / max(report["num_compared_held_out"], 1)
  held_out, asked = report["held_out_token_rate"], config.corpus.eval_fraction
  if wrapped > _MANY:
    found.append(
      f"{wrapped:.0%} of the lines end amid a sentence at about the same "
      f"column: the text seems to be wrapped, set {setting}join_lines=True"
    )
  if lost > _LOST_CHARACTERS:
    found.append(
      f"{lost:.2%} of the characters are lost in [UNK]: raise "
      f"corpus.vocab_size, or set {setting}split_long_words=True for text "
      "without spaces"
    )
  if copies > _DUPLICATES:
    found.append(f"{copies:.0%} of the documents were copies of others")
  if near > _DUPLICATES:
    found.append(
      f"{near:.0%} of the documents are nearly the same as another one: set "
      f"{setting}near_duplicates=drop"
    )
  if leaked > 0:
    found.append(
      f"{leaked:.1%} of the held-out documents have a near twin in training, "
      "which flatters the held-out figures: set "
      f"{setting}near_duplicates=drop"
    )
  if held_out > 2 * asked + 0.01:
    found.append(
      f"{held_out:.0%} of the tokens are held out, and eval_fraction is "
      f"{asked}: the documents are few and long, cut them at their chapters"
    )
  found += [
    f"{name} fills {report[name]['fill']:.0%} of a sequence of "
    f"{report[name]['max_seq_length']} tokens: documents are short, join those "
    f"that belong together or lower {name}.max_seq_length"
    for name in PHASES
    if name in report and report[name]["fill"] < _LOW_FILL
  ]
  return found


def _phase_report(config, corpus, documents, name):
  phase = config[name]
  number = PHASES.index(name) + 1
  examples = Examples(
    corpus, documents, phase.max_seq_length, config.seed, number
  )
  if examples.examples_per_pass < phase.batch_size:
    raise UserError(
      f"{name}.batch_size is {phase.batch_size}, but the text gives only"
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
    f"({report['num_duplicate_documents']:,} duplicates and "
    f"{report['num_short_documents']:,} too short dropped), "
    f"{report['num_sentences']:,} sentences, {report['num_words']:,} words, "
    f"{report['num_tokens']:,} tokens"
  )
  print(
    f"corpus: held out: {report['num_held_out_documents']:,} documents, "
    f"{report['held_out_token_rate']:.2%} of the tokens; near-duplicates: "
    f"{report['num_near_duplicates']:,} of "
    f"{report['num_compared_documents']:,} documents compared, "
    f"{report['num_near_duplicates_dropped']:,} dropped, "
    f"{report['num_leaked']:,} of them held out with a twin in training"
  )
  print(
    f"corpus: vocabulary of {report['vocab_size']:,}, "
    f"{report['tokens_per_word']:.4f} tokens per word, "
    f"{report['unknown_rate']:.4%} unknown, "
    f"{report['lost_characters_rate']:.4%} of the characters lost; "
    f"{report['num_spelled_special_tokens']:,} special tokens spelled in text, "
    f"{report['num_skipped_rows']:,} rows skipped"
  )
  if len(report["sources"]) > 1:
    for source in report["sources"]:
      print(
        f"corpus: {source['spec']} ({source['language']}): "
        f"{source['num_documents']:,} documents, {source['num_tokens']:,} "
        f"tokens, {source['num_held_out_tokens']:,} of them held out, seen "
        f"{source['weight']:.2f} times a pass"
      )
  for name in PHASES:
    if name in report:
      phase = report[name]
      print(
        f"corpus: {name} at length {phase['max_seq_length']}: "
        f"{phase['examples_per_pass']:,} examples a pass, "
        f"{phase['predicted_passes']:,.1f} passes, "
        f"{phase['not_next_rate']:.4f} NotNext, fill {phase['fill']:.4f}"
      )
  for warning in report["warnings"]:
    print(f"warning: {warning}")
