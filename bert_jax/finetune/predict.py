"""Predicts new inputs with a fine-tuned model.

    python -m bert_jax.finetune.predict --workdir=W --input=F --output=O
    python -m bert_jax.finetune.predict --init=H --config=C --input=F --output=O

The model is the best one of a workdir of bert_jax.finetune, or any fine-tuned
BERT in a Hugging Face folder; then a config names the task and the columns.
The input is read as the training data was, but labels are not needed. With
--format it is of another form; --format=lines has an example on each line (the
texts of a pair parted by a tab). Where there are labels, the metrics are
printed as JSON. The output has a JSON line for each row; for question answering
it is what SQuAD's script reads.
"""

import json

from absl import flags

from bert_jax import command
from bert_jax.errors import UserError
from bert_jax.finetune import metrics, readers
from bert_jax.finetune import model as model_lib
from bert_jax.finetune.config import default_config, validate
from bert_jax.finetune.tasks import KINDS
from bert_jax.sharding import mesh as mesh_lib
from bert_jax.sharding import rows as rows_lib
from bert_jax.storage import paths
from bert_jax.storage import workdir as workdir_lib
from bert_jax.weights import hf, pretrained


def load_model(source, config):
  """Reads a fine-tuned model.

  Args:
    source: folder, see `model.load_init`.
    config: settings with the keys of `default_config()`.

  Returns:
    (`TaskModel`, its parameters as sharded arrays).

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
  mesh = mesh_lib.create_mesh(config.mesh)
  mesh_lib.check_heads(mesh, found.bert_config.num_attention_heads)
  rows_lib.check_batch_size(mesh, "train.batch_size", config.train.batch_size)
  labels = kind.label_names([])
  if has_output:
    found, labels = model_lib.with_head(found, head), head.labels
  model = model_lib.TaskModel(config, kind, labels, found, mesh)
  params, fresh = model_lib.create_params(model)
  pretrained.print_report(found, fresh)
  return model, params


def predict(model, params, source, output):
  """Predicts the rows of a source.

  Args:
    model: `TaskModel`.
    params: its parameters.
    source: the input, as `data.train` is given.
    output: file to write.

  Returns:
    dict of metrics, or None where some rows have no label that the model
    knows.

  Raises:
    UserError: the input can't be read.
  """
  rows = _read_rows(model, source)
  features = model_lib.encode(model, rows, labelled=False)
  logits = model_lib.make_predict(model, params)(params, features)
  predictions = model_lib.decode(model, logits, rows, features)
  output = paths.as_path(output)
  model.kind.save_predictions(output, rows, predictions)
  print(f"predict: {len(rows):,} rows; the predictions are in {output}")
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


def main(argv):
  """Runs the command."""
  del argv
  values = flags.FLAGS
  for name in ("input", "output"):
    if not values[name].value:
      raise UserError(f"--{name} is missing; expected a file")
  if bool(values.workdir) == bool(values.init):
    raise UserError(
      "expected either --workdir, a folder of bert_jax.finetune, or --init, a "
      "fine-tuned Hugging Face folder, with --config"
    )
  if values.workdir:
    source, config = _best_of(paths.as_path(values.workdir))
  else:
    source, config = values.init, command.config()
    # What only training needs, and validate asks for.
    config.data.train = config.data.dev = values.input
    validate(config)
    _check_ending(config, values.input, values.format)
  if values.format:
    config.data.format = config.data.scored.format = values.format
  config.pretrained = True
  model, params = load_model(source, config)
  scores = predict(model, params, values.input, values.output)
  if scores:
    print(json.dumps(scores))


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


if __name__ == "__main__":
  command.define_config_flags()
  flags.DEFINE_string("init", None, "Fine-tuned Hugging Face folder.")
  flags.DEFINE_string("input", None, "Rows to predict.")
  flags.DEFINE_enum(
    "format",
    "",
    ("", "lines", *readers.FORMATS),
    "How they are written; default: as the training data.",
  )
  flags.DEFINE_string("output", None, "File for the predictions.")
  command.run(main, default_config)
