"""Every setting of a fine-tuning, its default and its rule.

The defaults are the paper's (Devlin et al. 2018, section 4.1 and appendix
A.3). The architecture, dropout and the vocabulary are those of `--init`.
"""

import ml_collections

from bert_jax.config import require
from bert_jax.finetune import readers
from bert_jax.finetune.tasks import KINDS
from bert_jax.model.pooling import POOLINGS

# Settings that may differ when a run is continued in its workdir.
CHANGEABLE = ("mesh", "eval", "checkpoint", "log")


def default_config():
  """Returns the settings, as an `ml_collections.ConfigDict`."""
  config = ml_collections.ConfigDict()

  # Seeds the output layer, the order of the rows and dropout.
  config.seed = 0
  # False takes only architecture and vocabulary from --init, and random
  # weights: what pretraining is worth is the difference.
  config.pretrained = True

  config.task = task = ml_collections.ConfigDict()
  # classification, multilabel, regression, tagging, question_answering,
  # similarity or summarization.
  task.kind = "classification"
  # Chooses the best checkpoint; "" is the kind's usual one.
  task.metric = ""
  # Question answering: whether there are questions without an answer, as in
  # SQuAD 2.0, ...
  task.no_answer = False
  # ... by how much the score of none must exceed the best answer's, ...
  task.null_threshold = 0.0
  # ... how many tokens an answer may have, and how many answers are kept.
  task.max_answer_length = 30
  task.num_best = 20

  # Similarity: how a text becomes a vector, mean or cls, and the score that
  # stands for a cosine of 1.
  task.pooling = "mean"
  task.max_score = 5.0

  # Summarization: sentences of a summary.
  task.num_sentences = 3

  config.data = data = ml_collections.ConfigDict()
  # A file, or "tfds:NAME[/CONFIG][:SPLIT]".
  data.train = ""
  data.dev = ""
  # tsv (quotes are plain characters), tsv_quoted, csv, jsonl, conll or lines
  # (a text on each line, no labels); "" goes by the file's ending.
  data.format = ""
  # Whether the first line of a table names the columns.
  data.header = True
  # Columns, by name or by number: "1" is the first, "-1" the last.
  data.text_a = "sentence"
  data.text_b = ""  # the second text of a pair
  data.text_c = ""  # similarity: a text that is unlike the first
  data.label = "label"
  # Between the labels of one row, in a table.
  data.label_separator = ","
  # Summarization: the language whose sentences are split, an ISO code.
  data.language = "en"
  # All labels, comma-separated; "" takes those of the training data.
  data.labels = ""
  # Tokens of a sequence, the special ones included; longer texts are cut, or
  # read in pieces.
  data.max_seq_length = 128
  # How many lengths batches have at most, chosen to fit the data; each is
  # compiled. 1 pads every batch to the longest text.
  data.num_lengths = 4
  # Question answering: tokens that neighbouring windows share, as in
  # transformers, and the longest question.
  data.doc_stride = 128
  data.max_query_length = 64

  # Similarity: the scored pairs of data.dev, where the training data are none.
  data.scored = scored = ml_collections.ConfigDict()
  scored.format = ""
  scored.header = True
  scored.text_a = "sentence1"
  scored.text_b = "sentence2"
  scored.label = "score"

  config.model = model = ml_collections.ConfigDict()
  # Arithmetic of the layers, as in pretraining.
  model.dtype = "bfloat16"

  config.train = train = ml_collections.ConfigDict()
  train.batch_size = 32  # over all devices
  train.num_epochs = 3.0

  config.optimizer = optimizer = ml_collections.ConfigDict()
  optimizer.name = "adamw"
  optimizer.learning_rate = 5e-5  # the peak; the paper tries 5e-5, 3e-5, 2e-5
  optimizer.warmup_fraction = 0.1  # of all steps
  optimizer.weight_decay = 0.01
  optimizer.beta1 = 0.9
  optimizer.beta2 = 0.999
  optimizer.eps = 1e-6
  optimizer.max_grad_norm = 1.0
  optimizer.bias_correction = True
  optimizer.grad_accumulation = 1

  config.mesh = mesh = ml_collections.ConfigDict()
  mesh.data = -1
  mesh.fsdp = 1
  mesh.model = 1

  config.eval = evaluation = ml_collections.ConfigDict()
  evaluation.every_steps = 0  # 0: after every epoch

  config.checkpoint = checkpoint = ml_collections.ConfigDict()
  # Whichever comes first; 0 seconds: no limit.
  checkpoint.every_steps = 500
  checkpoint.every_seconds = 300.0
  checkpoint.keep_every_steps = 0  # every k-th is kept for good; 0: none
  checkpoint.keep = 1  # to go on from; the best model is kept besides

  config.log = log = ml_collections.ConfigDict()
  # Whichever comes first; 0 seconds: no limit.
  log.every_steps = 50
  log.every_seconds = 10.0
  return config


def num_train_steps(config, num_features):
  """Returns the steps of a run; the last rows may be short of a batch."""
  rows = config.train.num_epochs * num_features
  return max(1, int(rows / config.train.batch_size))


def resolve(config, num_features):
  """Fills in the numbers of steps that depend on the training data.

  Args:
    config: validated settings.
    num_features: size of the training data.

  Returns:
    A copy of the settings with optimizer.warmup_steps and eval.every_steps.
  """
  num_steps = num_train_steps(config, num_features)
  resolved = config.copy_and_resolve_references()
  with resolved.unlocked():
    resolved.optimizer.warmup_steps = int(
      config.optimizer.warmup_fraction * num_steps
    )
  if not config.eval.every_steps:
    every_steps = -(-num_steps // max(1, round(config.train.num_epochs)))
    resolved.eval.every_steps = every_steps
  return resolved


def validate(config):
  """Checks every setting that can be checked without looking at files.

  Args:
    config: settings with the keys of `default_config()`.

  Raises:
    UserError: the first setting found wrong, its value, and what it takes.
  """
  _validate_choices(config)
  task, data, train = config.task, config.data, config.train
  for section, key in (
    (data, "data.train"),
    (data, "data.dev"),
    (data, "data.text_a"),
    (data, "data.label"),
  ):
    value = section[key.split(".")[1]]
    is_optional = key == "data.label" and task.kind == "similarity"
    require(value or is_optional, key, value, "a file or a column")
  for section, key in (
    (task, "task.max_answer_length"),
    (task, "task.num_best"),
    (task, "task.max_score"),
    (task, "task.num_sentences"),
    (data, "data.max_query_length"),
    (data, "data.num_lengths"),
    (train, "train.batch_size"),
    (train, "train.num_epochs"),
    (config.optimizer, "optimizer.learning_rate"),
    (config.optimizer, "optimizer.grad_accumulation"),
    (config.checkpoint, "checkpoint.every_steps"),
    (config.checkpoint, "checkpoint.keep"),
    (config.log, "log.every_steps"),
  ):
    value = section[key.split(".")[1]]
    require(value > 0, key, value, "more than 0")
  require(
    data.max_seq_length >= 8,
    "data.max_seq_length",
    data.max_seq_length,
    "at least 8",
  )
  if task.kind == "question_answering":
    room = data.max_seq_length - data.max_query_length - 3
    require(
      0 <= data.doc_stride < room,
      "data.doc_stride",
      data.doc_stride,
      f"less than {room}, what max_seq_length and max_query_length leave for "
      "the text",
    )
  accumulation = config.optimizer.grad_accumulation
  require(
    train.batch_size % accumulation == 0,
    "train.batch_size",
    train.batch_size,
    f"a multiple of optimizer.grad_accumulation = {accumulation}",
  )
  fraction = config.optimizer.warmup_fraction
  require(
    0 <= fraction < 1, "optimizer.warmup_fraction", fraction, "0 <= f < 1"
  )
  every_steps = config.eval.every_steps
  require(every_steps >= 0, "eval.every_steps", every_steps, "0 or more")
  sizes = [config.mesh[axis] for axis in ("data", "fsdp", "model")]
  require(
    all(s == -1 or s > 0 for s in sizes) and sizes.count(-1) <= 1,
    "mesh",
    tuple(sizes),
    "positive sizes, at most one of them -1",
  )


def _validate_choices(config):
  for key, value, choices in (
    ("task.kind", config.task.kind, tuple(KINDS)),
    ("task.pooling", config.task.pooling, POOLINGS),
    ("data.format", config.data.format, ("", "lines", *readers.FORMATS)),
    ("model.dtype", config.model.dtype, ("float32", "bfloat16")),
    ("optimizer.name", config.optimizer.name, ("adamw", "lamb")),
  ):
    require(
      value in choices, key, value, f"one of {', '.join(filter(None, choices))}"
    )
