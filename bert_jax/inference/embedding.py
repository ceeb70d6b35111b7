"""Vectors of texts by any pretrained BERT (BERT, section 5.3)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
import tqdm
from jax.sharding import NamedSharding, PartitionSpec

from bert_jax.config import default_config
from bert_jax.data.rows import iterate_rows
from bert_jax.distributed.joining import joined
from bert_jax.errors import UserError
from bert_jax.inference import batching
from bert_jax.inference.embeddings_file import (
  SUFFIXES,
  Embedded,
  save_embeddings,
)
from bert_jax.model import pooling as pooling_lib
from bert_jax.model.bert import BertModel, segment_inputs
from bert_jax.sharding import mesh as mesh_lib
from bert_jax.sharding import rows as rows_lib
from bert_jax.storage import shards
from bert_jax.weights.parameters import checksum
from bert_jax.weights.pretrained import load_init, print_report

POOLINGS = (*pooling_lib.POOLINGS, "tokens")
# "last4" is the best of the paper's table 7, in the order of its code.
LAYERS = {"last": (-1,), "last4": (-1, -2, -3, -4)}
# Rows are sorted by length within so many batches or bytes of vectors.
_WINDOW_BATCHES = 32
_WINDOW_BYTES = 2**28


@dataclasses.dataclass(frozen=True)
class Embedder:
  """A model ready to embed.

  Attributes:
    tokenizer: `tokenizers.Tokenizer` that cuts at `max_length`.
    max_length: longest row, in tokens.
    batch_size: rows of a batch, a multiple of the devices.
    width: D, numbers of a vector.
    pooling: one of `POOLINGS`.
    sharding: of the arrays of a batch.
    step: jitted function of input_ids [B, L], a_length [B] and length [B] to
      vectors, [B, D] or [B, L, D].
  """

  tokenizer: tokenizers.Tokenizer
  max_length: int
  batch_size: int
  width: int
  pooling: str
  sharding: NamedSharding
  step: object


def parse_layers(layers, num_hidden_layers):
  """Reads a choice of layers.

  Args:
    layers: "last", "last4" or comma-separated numbers.
    num_hidden_layers: blocks of the model.

  Returns:
    tuple of int, indices into the embeddings and every block's output.

  Raises:
    UserError: a number that is none, or a layer that the model lacks.
  """
  try:
    chosen = LAYERS.get(layers) or tuple(map(int, layers.split(",")))
  except ValueError:
    raise UserError(
      f"--layers={layers} is not understood; expected last, last4 or numbers "
      "such as 0,3,-1"
    ) from None
  for layer in chosen:
    if not -num_hidden_layers - 1 <= layer <= num_hidden_layers:
      raise UserError(
        f"--layers={layers} asks for layer {layer}; expected "
        f"{-num_hidden_layers - 1} to {num_hidden_layers}"
      )
  return chosen


def create_embedder(pretrained, layers, pooling, max_length, batch_size):
  """Prepares a model to embed on all devices of this process.

  Args:
    pretrained: `Pretrained`.
    layers: as `parse_layers` takes it.
    pooling: one of `POOLINGS`, or None for that of a folder of
      sentence-transformers, and else mean.
    max_length: longest row in tokens, or None for the model's.
    batch_size: rows of a batch, rounded up to a multiple of the devices.

  Returns:
    `Embedder`.

  Raises:
    UserError: no vocabulary, or a setting that the model can't serve.
  """
  config = pretrained.bert_config
  chosen = parse_layers(layers, config.num_hidden_layers)
  normalize = False
  if not pooling:
    pooling, normalize = _find_pooling(pretrained)
  max_length = pretrained.max_length if max_length is None else max_length
  if not 4 <= max_length <= config.max_position_embeddings:
    raise UserError(
      f"--max_length={max_length}; expected 4 to "
      f"{config.max_position_embeddings}, the model's positions"
    )
  if batch_size < 1:
    raise UserError(f"--batch_size={batch_size}; expected at least 1")
  tokenizer = pretrained.create_tokenizer()
  tokenizer.enable_truncation(max_length)
  mesh = mesh_lib.create_mesh(default_config().mesh, jax.local_devices())
  return Embedder(
    tokenizer=tokenizer,
    max_length=max_length,
    batch_size=-(-batch_size // mesh.size) * mesh.size,
    width=len(chosen) * config.hidden_size,
    pooling=pooling,
    sharding=rows_lib.batch_sharding(mesh),
    step=_make_step(
      mesh, config, pretrained.params["bert"], chosen, pooling, normalize
    ),
  )


def _find_pooling(pretrained):
  """Returns (pooling, whether vectors are scaled to length 1) of a source."""
  modules = pretrained.modules
  if modules is None:
    return "mean", False
  if modules.problem:
    raise UserError(
      f"{modules.problem}; expected Transformer, Pooling by "
      f"{' or '.join(pooling_lib.POOLINGS)}, and Normalize (set --pooling to "
      "embed in another way)"
    )
  return modules.pooling, modules.normalizes


def _make_step(mesh, config, params, layers, pooling, normalize):
  whole = NamedSharding(mesh, PartitionSpec())
  rows = rows_lib.batch_sharding(mesh)
  body = {k: v for k, v in params.items() if k != "pooler"}
  model = BertModel(config, add_pooling_layer=False)

  def step(params, input_ids, a_length, length):
    types, mask = segment_inputs(a_length, length, input_ids.shape[1])
    hidden_states, _ = model.apply(
      {"params": params}, input_ids, types, mask, deterministic=True
    )
    x = jnp.concatenate([hidden_states[layer] for layer in layers], axis=-1)
    if pooling != "tokens":
      x = pooling_lib.pool(x, mask, pooling)
    if normalize:
      x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x

  jitted = jax.jit(
    step, in_shardings=(whole, rows, rows, rows), out_shardings=rows
  )
  return functools.partial(jitted, jax.device_put(body, whole))


def embed_rows(embedder, rows):
  """Embeds rows in their order, with a window of them in memory.

  Args:
    embedder: `Embedder`.
    rows: iterable of (text, second text or None).

  Yields:
    `Embedded` of each row.
  """
  window, num_bytes = [], 0
  for text, pair in rows:
    row = batching.encode(embedder.tokenizer, text, pair)
    window.append(row)
    vectors = len(row.ids) if embedder.pooling == "tokens" else 1
    num_bytes += 4 * vectors * embedder.width
    full = len(window) == _WINDOW_BATCHES * embedder.batch_size
    if full or num_bytes >= _WINDOW_BYTES:
      yield from _embed_window(embedder, window)
      window, num_bytes = [], 0
  yield from _embed_window(embedder, window)


def _embed_window(embedder, window):
  """Returns the `Embedded` of some rows, computed longest first."""
  results = [None] * len(window)

  def fetch(chosen, vectors):
    for i, row_vectors in zip(chosen, np.asarray(vectors), strict=False):
      row = window[i]
      if row_vectors.ndim == 2:
        row_vectors = row_vectors[: len(row.ids)]
      # A copy: a view would keep the whole batch alive.
      results[i] = Embedded(np.array(row_vectors), row.ids, row.is_cut)

  running = None
  batches = batching.iterate_batches(
    window, embedder.batch_size, embedder.max_length
  )
  for chosen, batch in batches:
    # The device computes this batch while the one before is fetched.
    batch = jax.device_put(batch, embedder.sharding)
    launched = chosen, embedder.step(*batch)
    if running:
      fetch(*running)
    running = launched
  if running:
    fetch(*running)
  return results


def _checked(rows, path, pretrained):
  """Yields rows.

  Raises:
    UserError: there are none, or pairs and a model with one token type.
  """
  row = None
  for row in rows:
    if row[1] is not None:
      pretrained.check_pairs()
    yield row
  if row is None:
    raise UserError(f"{path} is empty; expected one text a line")


def embed_files(
  init,
  step,
  source,
  output,
  *,
  text_key,
  layers,
  pooling,
  max_length,
  batch_size,
):
  """Embeds the rows of files, shared among all processes of the command.

  Args:
    init: workdir or folder of a model, as `load_init` takes it.
    step: checkpoint of a workdir, int, "best" or None.
    source: a .txt, one text a line, or .jsonl; or a pattern of such, see
      `storage.shards`.
    output: file to write; its ending says the format.
    text_key: key of the text in .jsonl.
    layers: as `parse_layers` takes it.
    pooling: see `create_embedder`.
    max_length: longest row in tokens, or None for the model's.
    batch_size: rows at a time, over all devices of a process.

  Raises:
    UserError: model, input or a setting is not as it must be.
  """
  if not output.endswith(SUFFIXES):
    raise UserError(f"--output={output} should end in {', '.join(SUFFIXES)}")
  with joined() as hosts:
    pretrained = load_init(init, step)
    print_report(pretrained, ())
    embedder = create_embedder(
      pretrained, layers, pooling, max_length, batch_size
    )
    settings = {
      "model": checksum(pretrained.params),
      "text_key": text_key,
      "layers": layers,
      "pooling": embedder.pooling,
      "max_length": embedder.max_length,
    }
    for input_path, output_path in shards.divide(
      hosts, source, output, settings
    ):
      rows = iterate_rows(input_path, text_key)
      _embed_file(
        embedder,
        _checked(rows, input_path, pretrained),
        output_path,
        pretrained,
      )


def _embed_file(embedder, rows, output, pretrained):
  """Embeds rows to a file, and prints how many."""
  num_cut = 0

  def embedded():
    nonlocal num_cut
    for row in tqdm.tqdm(embed_rows(embedder, rows), unit="row", disable=None):
      num_cut += row.is_cut
      yield row

  num_rows = save_embeddings(output, embedded(), pretrained.vocab)
  print(
    f"embed: {num_rows:,} rows ({num_cut:,} cut at {embedder.max_length} "
    f"tokens) as vectors of {embedder.width} ({embedder.pooling}) are in "
    f"{output}"
  )
