"""Reads a fine-tuned model and predicts rows with it."""

import functools
import json

import jax

from bert_jax.config import flatten
from bert_jax.distributed.joining import joined
from bert_jax.errors import UserError
from bert_jax.finetune import metrics, readers
from bert_jax.finetune import model as model_lib
from bert_jax.finetune.config import default_config, validate
from bert_jax.finetune.tasks import KINDS
from bert_jax.sharding import mesh as mesh_lib
from bert_jax.storage import paths, shards
from bert_jax.storage import workdir as workdir_lib
from bert_jax.weights import hf, parameters, pretrained


def predict_files(source, config, inputs, output, file_format):
  """Predicts the rows of files, shared among all processes of the command.

  Args:
    source: workdir of `bert_jax.finetune`, or a fine-tuned Hugging Face folder.
    config: settings for such a folder; None for a workdir, which has its own.
    inputs: a source of rows, as `data.train` is given, or a pattern of files,
      see `storage.shards`.
    output: path to write to.
    file_format: how the rows are written, one of `readers.FORMATS` or "lines";
      "" as the training data.

  Raises:
    UserError: model, settings or input are not as they must be.
  """
  with joined() as hosts:
    if config is None:
      source, config = _best_of(paths.as_path(source))
    else:
      # What only training needs, and validate asks for.
      config.data.train = config.data.dev = inputs
      validate(config)
      _check_ending(config, inputs, file_format)
    if file_format:
      config.data.format = config.data.scored.format = file_format
    config.pretrained = True
    model, compute_logits = load_model(source, config)
    for one_input, one_output in shards.divide(
      hosts, inputs, output, _settings(model)
    ):
      rows, predictions = predict(model, compute_logits, one_input, one_output)
      scores = one_input == inputs and score(model, rows, predictions)
      if scores:
        print(json.dumps(scores))


def _settings(model):
  """Returns what predictions depend on beside the input."""
  sections = {key: model.config[key].to_dict() for key in ("task", "data")}
  for key in ("train", "dev"):
    del sections["data"][key]
  return {
    "model": parameters.checksum(model.pretrained.params),
    "labels": list(model.labels),
    "dtype": model.bert_config.dtype,
  } | flatten(sections)


def load_model(source, config):
  """Reads a fine-tuned model to all devices of this process.

  Args:
    source: folder, see `model.load_init`.
    config: settings with the keys of `default_config()`; the mesh becomes that
      of the devices here, and the batch size a multiple of them.

  Returns:
    (`TaskModel`, function of `Features` to logits; see `model.make_predict`).

  Raises:
    UserError: the folder has no output layer for this kind of task.
  """
  found, head = model_lib.load_init(source, config)
  kind = KINDS[config.task.kind]
  has_output = kind.heads in hf.TASK_HEADS
  if has_output and (head is None or not head.fits(kind)):
    holds = head and f"{head.architecture}, {head.problem_type}"
    raise UserError(
      f"{source} is not fine-tuned for {config.task.kind} (its output layer: "
      f"{holds or 'none'}); expected a model of bert_jax.finetune, or set "
      "--config.task.kind"
    )
  config.mesh = default_config().mesh
  mesh = mesh_lib.create_mesh(config.mesh, jax.local_devices())
  config.train.batch_size = -(-config.train.batch_size // mesh.size) * mesh.size
  labels = kind.label_names([])
  if has_output:
    found, labels = model_lib.with_head(found, head), head.labels
  model = model_lib.TaskModel(config, kind, labels, found, mesh)
  params, fresh = model_lib.create_params(model)
  pretrained.print_report(found, fresh)
  compute = model_lib.make_predict(model, params)
  return model, functools.partial(compute, params)


def predict(model, compute_logits, source, output):
  """Predicts the rows of a source.

  Args:
    model: `TaskModel`.
    compute_logits: function of `Features`, as from `load_model`; it keeps its
      compiled programs from one source to the next.
    source: the input, as `data.train` is given.
    output: file to write.

  Returns:
    (list of rows, list of predictions, a dict for each row).

  Raises:
    UserError: the input can't be read.
  """
  rows = _read_rows(model, source)
  features = model_lib.encode(model, rows, labelled=False)
  predictions = model_lib.decode(
    model, compute_logits(features), rows, features
  )
  output = paths.as_path(output)
  model.kind.save_predictions(output, rows, predictions)
  print(f"predict: {len(rows):,} rows; the predictions are in {output}")
  return rows, predictions


def score(model, rows, predictions):
  """Returns a dict of metrics; None where a row has no label of the model's."""
  if not model.kind.has_known_labels(rows, model.labels):
    print("predict: no metrics, since some rows have no label of the model's")
    return None
  metrics.check_libraries()
  return model.kind.score(predictions, rows, model.labels)


def _read_rows(model, source):
  try:
    return model.kind.read_rows(source, model.config, labelled=False)
  except UserError as e:
    raise UserError(
      f"{e}; if the input is written in another way, set --format (lines, "
      f"{', '.join(readers.FORMATS)})"
    ) from None


def _best_of(workdir):
  """Returns the (model's folder, settings) of a workdir."""
  if (workdir / "results.json").exists():
    raise UserError(
      f"{workdir} holds several seeds; expected one of them, such as "
      f"--workdir={workdir / 'seed_0'}"
    )
  config = workdir_lib.load_config(workdir, default_config)
  folder = workdir / pretrained.MODEL_DIR
  if not folder.exists():
    raise UserError(
      f"{workdir} holds no fine-tuned model; expected a workdir of "
      "bert_jax.finetune with at least one evaluation"
    )
  return folder, config


def _check_ending(config, source, file_format):
  """Raises UserError where nothing says how a .txt file is to be read."""
  if source.endswith(".txt") and not (file_format or config.data.format):
    raise UserError(
      f"--input={source} may hold a text on each line, a table or CoNLL's "
      "columns; expected --format=lines, tsv or conll beside --init"
    )
