"""Data sets of the package `datasets`: saved to disk, or by name."""

import pathlib

from bert_jax.data.sources.blocks import ReadBlock, record_text
from bert_jax.data.sources.source import Source
from bert_jax.errors import UserError

_BATCH_ROWS = 1000


def open_dataset(spec, layout):
  """Opens "hf:FOLDER[:SPLIT]" or "hf:NAME[/CONFIG][:SPLIT]".

  Args:
    spec: str. A folder is one that `save_to_disk` wrote, or one of files that
      `load_dataset` takes; a name is one of the Hugging Face hub.
    layout: `Layout`.

  Returns:
    `Source`.

  Raises:
    UserError: `datasets` is not installed, or there is no such data set,
      split or column.
  """
  try:
    import datasets
  except ImportError:
    raise UserError(
      f"corpus.source {spec!r} needs the package datasets; expected it to be "
      "installed (pip install 'bert_jax[datasets]')"
    ) from None
  name, split = _split_spec(spec)
  try:
    found = _load(datasets, name, split)
  except Exception as e:  # anything: it is the data set's own code
    reason = (str(e).strip() or type(e).__name__).splitlines()[0]
    raise UserError(f"corpus.source {spec!r}: {reason}") from None
  column = layout.text_key.partition("/")[0]
  if column not in found.column_names:
    raise UserError(
      f"corpus.source {spec!r} has no column {column!r}; it has: "
      f"{', '.join(found.column_names)} (set --config.corpus.text_key)"
    )
  found = found.select_columns([column])
  num_bytes = found.data.nbytes

  def blocks(num_bytes_wanted):
    del num_bytes_wanted
    for start in range(0, len(found), _BATCH_ROWS):
      end = min(start + _BATCH_ROWS, len(found))
      yield (
        _block(found, start, end, layout, spec),
        (num_bytes * end // len(found)),
      )

  return Source(spec, num_bytes, num_bytes, blocks)


def _split_spec(spec):
  """Returns (name, split) of a spec."""
  name = spec.removeprefix("hf:")
  if pathlib.Path(name).expanduser().exists():
    return name, "train"
  head, separator, split = name.rpartition(":")
  return (head, split) if separator else (name, "train")


def _load(datasets, name, split):
  folder = pathlib.Path(name).expanduser()
  if (folder / "state.json").exists():
    return datasets.load_from_disk(str(folder))
  if (folder / "dataset_dict.json").exists():
    return datasets.load_from_disk(str(folder))[split]
  if folder.exists():
    return datasets.load_dataset(str(folder), split=split)
  parts = name.split("/")
  if len(parts) == 3:
    return datasets.load_dataset("/".join(parts[:2]), parts[2], split=split)
  return datasets.load_dataset(name, split=split)


def _block(found, start, end, layout, spec):
  texts, problems = [], []
  rows = found[start:end]
  for number in range(end - start):
    row = {name: values[number] for name, values in rows.items()}
    where = f"{spec} row {start + number + 1}"
    try:
      texts.append(record_text(row, layout.text_key, where))
    except UserError as e:
      problems.append(str(e))
  return ReadBlock(texts, problems, layout)
