"""Parquet files."""

import pyarrow
import pyarrow.parquet

from bert_jax.data.sources.blocks import ReadBlock, record_text
from bert_jax.errors import UserError
from bert_jax.storage.paths import as_path

_BATCH_ROWS = 1000


def read_parquet(path, layout, num_bytes):
  """Reads a Parquet file in blocks.

  Args:
    path: str.
    layout: `Layout`; `text_key` names the column, "a/b" a field of it.
    num_bytes: not used; a block has 1,000 rows.

  Yields:
    (`ReadBlock`, stored bytes read so far).

  Raises:
    UserError: the file is no whole Parquet file or lacks the column.
  """
  del num_bytes
  size = as_path(path).stat().length
  column = layout.text_key.partition("/")[0]
  with as_path(path).open("rb") as raw:
    try:
      file = pyarrow.parquet.ParquetFile(raw)
      names = file.schema_arrow.names
      if column not in names:
        raise UserError(
          f"{path} has no column {column!r}; it has: {', '.join(names)} (set "
          "--config.corpus.text_key)"
        )
      rows = 0
      for batch in file.iter_batches(_BATCH_ROWS, columns=[column]):
        yield (
          _block(path, batch, layout, rows),
          (size * (rows + len(batch)) // max(file.metadata.num_rows, 1)),
        )
        rows += len(batch)
    except (pyarrow.ArrowException, OSError) as e:
      reason = str(e).splitlines()[0]
      raise UserError(f"{path} is not a whole Parquet file: {reason}") from None


def _block(path, batch, layout, rows_before):
  texts, problems = [], []
  for number, row in enumerate(batch.to_pylist(), start=rows_before + 1):
    try:
      texts.append(record_text(row, layout.text_key, f"{path} row {number}"))
    except UserError as e:
      problems.append(str(e))
  return ReadBlock(texts, problems, layout)
