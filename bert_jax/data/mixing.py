"""Which documents are trained on, and how often, by the weights of sources."""

import numpy as np

from bert_jax.data.corpus import split_documents, weigh_documents
from bert_jax.data.sources import spec
from bert_jax.errors import UserError


def training_documents(config, corpus):
  """Returns the documents to train on, repeated as their weights say.

  Args:
    config: the `corpus` part of the config.
    corpus: `Corpus`.

  Returns:
    `DOCUMENT` [N].

  Raises:
    UserError: `corpus.source` has other entries than the corpus was made of.
  """
  training, _ = split_documents(corpus.documents, config.eval_fraction)
  weights = source_weights(config, corpus, training)
  return weigh_documents(training, weights)


def source_weights(config, corpus, documents):
  """Returns how often each entry of `corpus.source` is seen, float64 [entries].

  Language smoothing multiplies the entries of a language by p ** (s - 1), where
  p is the language's share of the tokens and s is `language_smoothing` (Devlin
  et al., multilingual BERT: 0.7); the largest language keeps its weight.

  Args:
    config: the `corpus` part of the config.
    corpus: `Corpus`.
    documents: `DOCUMENT` [N], without repetitions.
  """
  made_of = corpus.manifest["entries"]
  entries = spec.parse_entries(config)
  if len(entries) != len(made_of):
    raise UserError(
      f"corpus.source has {len(entries)} entries; expected the "
      f"{len(made_of)} that the corpus was made of (delete it or set "
      "--config.corpus.dir to another folder)"
    )
  tokens = np.bincount(
    documents["source"],
    weights=documents["num_tokens"],
    minlength=len(entries),
  )
  languages = [entry["language"] for entry in made_of]
  of_language = {
    language: sum(
      n for n, other in zip(tokens, languages, strict=True) if other == language
    )
    for language in languages
  }
  largest = max(of_language.values())
  power = config.language_smoothing - 1
  return np.array(
    [
      entry.weight * (max(of_language[language], 1) / largest) ** power
      for entry, language in zip(entries, languages, strict=True)
    ]
  )
