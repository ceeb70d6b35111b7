"""Which rows of an evaluation set occur in a corpus, by runs of tokens."""

import numpy as np

from bert_jax.data import corpus_cache
from bert_jax.data.encoding import Encoder, EncodingRules
from bert_jax.data.rows import iterate_rows
from bert_jax.data.tokenization import WordRules
from bert_jax.errors import UserError
from bert_jax.storage import workdir as workdir_lib

# Tokens of a run; 13 words are usual for decontamination (Brown et al. 2020,
# appendix C), and a word is 1.1 to 1.5 tokens.
RUN_TOKENS = 13
_CHUNK_TOKENS = 2**22
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def print_overlap(config, workdir, path):
  """Prints how much of an evaluation set stands in the corpus of a run.

  Args:
    config: validated settings of a run whose corpus is prepared.
    workdir: its folder.
    path: .txt or .jsonl (.gz) file, a text or pair a row.

  Raises:
    UserError: the file or the corpus can't be read.
  """
  directory = workdir_lib.corpus_dir(config, workdir)
  corpus = corpus_cache.open_corpus(directory)
  rows = [
    " ".join(filter(None, row))
    for row in iterate_rows(path, config.corpus.text_key)
  ]
  if not rows:
    raise UserError(f"--against={path} has no rows; expected texts")
  rules = WordRules(config.corpus.lowercase, config.corpus.strip_accents)
  encoder = Encoder(corpus.vocab, EncodingRules(rules, True))
  encoded = [encoder.encode([row.replace("\n", " ")]).tokens for row in rows]
  shares = find_overlap(corpus.tokens, encoded)
  compared = shares >= 0
  print(
    f"against {path}: {int((shares > 0).sum()):,} of {int(compared.sum()):,} "
    f"rows share a run of {RUN_TOKENS} tokens with the corpus, "
    f"{int((shares == 1).sum()):,} of them with every run; "
    f"{int((~compared).sum()):,} rows are shorter and were not compared"
  )
  for row in np.argsort(-shares, kind="stable")[:3]:
    if shares[row] > 0:
      print(f"  row {row + 1} ({shares[row]:.0%}): {rows[row][:120]}")


def find_overlap(tokens, rows):
  """Finds the runs of `RUN_TOKENS` tokens that rows and a corpus share.

  Args:
    tokens: `TokenShards` or array [T] of a corpus.
    rows: list of integer arrays, the rows of an evaluation set.

  Returns:
    float64 [number of rows]: the share of a row's runs that occur in the
    corpus; -1 for a row that is shorter than a run. Runs are compared by a
    64-bit hash.
  """
  hashes = [_hash_runs(row) for row in rows]
  wanted = np.unique(np.concatenate([*hashes, np.zeros(0, np.uint64)]))
  is_found = np.zeros(len(wanted), bool)
  for start in range(0, max(len(tokens) - RUN_TOKENS + 1, 0), _CHUNK_TOKENS):
    chunk = tokens[start : start + _CHUNK_TOKENS + RUN_TOKENS - 1]
    is_found |= np.isin(wanted, _hash_runs(chunk))
  found = wanted[is_found]
  return np.array(
    [np.isin(row, found).mean() if len(row) else -1.0 for row in hashes]
  )


def _hash_runs(tokens):
  """Returns a hash of each run of tokens, uint64."""
  count = max(len(tokens) - RUN_TOKENS + 1, 0)
  hashes = np.zeros(count, np.uint64)
  for offset in range(RUN_TOKENS):
    token = tokens[offset : offset + count].astype(np.uint64)
    hashes = (hashes ^ token) * _MULTIPLIER
    hashes ^= hashes >> np.uint64(29)
  return hashes
