"""What the model cards of all exports share."""


def without_folder(source):
  """Returns a source's name as strangers may read it on a card.

  Args:
    source: str, a path or glob, or "tfds:NAME".
  """
  if source.startswith("tfds:"):
    return source
  return source.rstrip("/").rpartition("/")[2]
