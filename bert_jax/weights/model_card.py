"""What the model cards of all exports share."""

import os


def without_folder(source):
  """Returns a source's name as strangers may read it on a card.

  Args:
    source: str, a path or glob, or "tfds:NAME".
  """
  is_path = not source.startswith("tfds:")
  return os.path.basename(source.rstrip("/")) if is_path else source
