"""Documents that are nearly alike, by MinHash (the package rensa)."""

import numpy as np
import rensa

# Documents of which so many of their runs of five tokens are the same.
THRESHOLD = 0.7
_NUM_PERMUTATIONS = 64
_NUM_BANDS = 16
_RUN_TOKENS = 5
# Of longer documents this part is compared.
_MAX_TOKENS = 4096
# The report compares so many documents, evenly spread: 10 s of one core.
MAX_REPORTED = 200_000


def find_near_duplicates(tokens, documents):
  """Finds documents that are nearly the same as an earlier one.

  Args:
    tokens: `TokenShards` or array [T] of a corpus.
    documents: `DOCUMENT` [N].

  Returns:
    int64 [N]: the number of an earlier document that a document is alike, or
    -1. Time and memory are linear in N: about 50 microseconds and 1 kB each.
  """
  index = rensa.RMinHashLSH(
    threshold=THRESHOLD, num_perm=_NUM_PERMUTATIONS, num_bands=_NUM_BANDS
  )
  kept = {}
  twins = np.full(len(documents), -1, np.int64)
  for number, document in enumerate(documents):
    sketch = _sketch(tokens, document)
    for other in index.query(sketch):
      if kept[other].jaccard(sketch) >= THRESHOLD:
        twins[number] = other
        break
    else:
      kept[number] = sketch
      index.insert(number, sketch)
  return twins


def _sketch(tokens, document):
  """Returns the MinHash of a document's runs of tokens."""
  start = document["start"]
  size = min(int(document["num_tokens"]), _MAX_TOKENS)
  width = tokens.dtype.itemsize
  data = tokens[start : start + size].tobytes()
  run = width * _RUN_TOKENS  # bytes
  last = max(len(data) - run, 0)
  sketch = rensa.RMinHash(num_perm=_NUM_PERMUTATIONS, seed=0)
  sketch.update([data[i : i + run] for i in range(0, last + 1, width)])
  return sketch


def drop_near_duplicates(tokens, documents):
  """Returns which documents are nearly the same as an earlier one, bool [N]."""
  return find_near_duplicates(tokens, documents) >= 0


def count_near_duplicates(tokens, documents, is_held_out):
  """Counts near-duplicates for the report, in a sample of a large corpus.

  Args:
    tokens: `TokenShards` or array [T] of a corpus.
    documents: `DOCUMENT` [N].
    is_held_out: bool [N].

  Returns:
    dict of `num_compared_documents`, `num_near_duplicates`,
    `num_compared_held_out` and `num_leaked` (held-out documents with a near
    twin among the training documents).
  """
  stride = -(-len(documents) // MAX_REPORTED)
  taken = np.zeros(len(documents), bool)
  taken[::stride] = True
  taken[np.flatnonzero(is_held_out)[: MAX_REPORTED // 10]] = True
  # Training documents first, so that a held-out one finds its twin there.
  chosen = np.flatnonzero(taken)
  chosen = chosen[np.argsort(is_held_out[chosen], kind="stable")]
  held_out = is_held_out[chosen]
  twins = find_near_duplicates(tokens, documents[chosen])
  has_twin = twins >= 0
  leaked = has_twin & held_out & ~held_out[np.maximum(twins, 0)]
  return {
    "num_compared_documents": len(chosen),
    "num_near_duplicates": int(has_twin.sum()),
    "num_compared_held_out": int(held_out.sum()),
    "num_leaked": int(leaked.sum()),
  }
