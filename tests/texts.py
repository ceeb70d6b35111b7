"""Made-up text: documents of sentences with some structure to learn."""

import random

_SUBJECTS = ("river", "farmer", "engine", "captain", "garden", "teacher")
_VERBS = ("moves", "follows", "carries", "answers", "crosses", "remembers")
_OBJECTS = ("stone", "lantern", "harvest", "signal", "bridge", "promise")


def make_documents(num_documents, num_sentences, seed=0):
  """Writes documents.

  Args:
    num_documents: how many.
    num_sentences: sentences of each; two sentences make a paragraph.
    seed: int.

  Returns:
    list of str, one paragraph a line.
  """
  rng = random.Random(seed)
  documents = []
  for number in range(num_documents):
    sentences = [
      f"The {rng.choice(_SUBJECTS)} {rng.choice(_VERBS)} the "
      f"{rng.choice(_OBJECTS)} of {rng.choice(_SUBJECTS)} {number % 97}."
      for _ in range(num_sentences)
    ]
    pairs = zip(sentences[::2], sentences[1::2], strict=True)
    documents.append("\n".join(" ".join(pair) for pair in pairs))
  return documents


def write_text(path, documents):
  """Writes documents to a .txt file, a blank line between them."""
  path.write_text("\n\n".join(documents) + "\n")
