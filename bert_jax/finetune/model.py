"""A model for a task: from `--init`, over data, to a Hugging Face folder."""

import dataclasses
import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bert_jax.errors import UserError
from bert_jax.finetune import similarity
from bert_jax.finetune.features import eval_batches
from bert_jax.finetune.tasks import KINDS, Kind
from bert_jax.model.bert import NEVER, segment_inputs
from bert_jax.model.bert_config import BertConfig
from bert_jax.sharding import mesh as mesh_lib
from bert_jax.sharding import partitioning
from bert_jax.sharding import rows as rows_lib
from bert_jax.storage import paths
from bert_jax.weights import hf, hf_config, hf_folder, pretrained
from bert_jax.weights.pretrained import Pretrained


@dataclasses.dataclass(frozen=True)
class Head:
  """The output layer of a folder.

  Attributes:
    params: nested dict of float32 numpy arrays.
    architecture: transformers' class.
    problem_type: transformers' word for the loss of a sequence's class.
    labels: tuple of str, what the outputs stand for.
  """

  params: dict
  architecture: str
  problem_type: str
  labels: tuple[str, ...]

  def fits(self, kind):
    """Tells whether it is a head for a `Kind`."""
    return (
      kind.heads in hf.TASK_HEADS
      and self.architecture == hf.TASK_HEADS[kind.heads][0]
      and kind.problem_type in (None, self.problem_type)
    )


@dataclasses.dataclass(frozen=True)
class TaskModel:
  """A kind of task with its labels and the architecture that learns it.

  Attributes:
    config: the run's settings.
    kind: `Kind`.
    labels: tuple of str, in the order of the outputs.
    pretrained: `Pretrained`; its params are where training starts.
    mesh: `jax.sharding.Mesh`.
  """

  config: ml_collections.ConfigDict
  kind: Kind
  labels: tuple[str, ...]
  pretrained: Pretrained
  mesh: Mesh

  @property
  def bert_config(self) -> BertConfig:
    """The architecture."""
    return self.pretrained.bert_config

  @property
  def module(self):
    """The linen module."""
    return self.kind.model(self.bert_config, len(self.labels), self.config.task)


def load_init(source, config):
  """Reads what to start from, and its output layer.

  Args:
    source: see `pretrained.load_init`.
    config: the run's settings.

  Returns:
    (`Pretrained` with a vocabulary, `Head` or None).

  Raises:
    UserError: there is no model, no vocabulary, or too few positions.
  """
  found = pretrained.load_init(source)
  if found.vocab is None:
    raise UserError(f"--init={source} has no vocabulary; expected a vocab.txt")
  if config.data.text_b or config.task.kind == "question_answering":
    found.check_pairs()
  positions = found.bert_config.max_position_embeddings
  if config.data.max_seq_length > positions:
    raise UserError(
      f"config.data.max_seq_length is {config.data.max_seq_length}; expected "
      f"at most {positions}, the positions of --init={source}"
    )
  bert_config = dataclasses.replace(found.bert_config, dtype=config.model.dtype)
  found = dataclasses.replace(found, bert_config=bert_config)
  names = [n for n in found.unused if re.match(r"(classifier|qa_outputs)\.", n)]
  return found, _load_head(found.source, names) if names else None


def _load_head(folder, names):
  """Reads the output layer of a Hugging Face folder."""
  folder = paths.as_path(folder)
  tensors, files = hf_folder.load_tensors(folder)
  for name in names:
    if tensors[name].ndim != 2 - name.endswith("bias"):
      raise UserError(
        f"{name} of {files[name]} has shape {tensors[name].shape}; expected "
        "[labels, hidden_size] and a bias of [labels]"
      )
  params = {
    name.replace(".weight", "/kernel").replace(".bias", "/bias"): np.array(
      tensors[name].T, np.float32, order="C"
    )
    for name in names
  }
  num_labels = len(tensors[names[0]])
  by_default = (
    "regression" if num_labels == 1 else "single_label_classification"
  )
  architecture, problem_type, labels = hf_config.load_head_settings(
    folder / hf.CONFIG_FILE, num_labels
  )
  return Head(
    params=flax.traverse_util.unflatten_dict(params, sep="/"),
    architecture=architecture,
    problem_type=problem_type or by_default,
    labels=labels,
  )


def create_task_model(config, found, head, labels):
  """Builds the model for some data; prints where its output layer comes from.

  Args:
    config: the run's settings.
    found: `Pretrained`.
    head: `Head` or None; used if it has these labels, in its order.
    labels: tuple of str, the data's.

  Returns:
    `TaskModel` on all devices.

  Raises:
    UserError: the mesh does not fit the devices.
  """
  kind = KINDS[config.task.kind]
  fits = (
    head is not None and head.fits(kind) and set(head.labels) == set(labels)
  )
  if fits:
    labels = head.labels
    found = with_head(found, head)
    print(f"init: goes on with its output layer for {_few(labels)}")
  elif kind.heads in hf.TASK_HEADS:
    print(f"init: a fresh output layer for {_few(labels)}")
    if head is not None:
      print(f"init: its own is {head.architecture}'s for {_few(head.labels)}")
  mesh = mesh_lib.create_mesh(config.mesh)
  mesh_lib.check_heads(mesh, found.bert_config.num_attention_heads)
  return TaskModel(config, kind, labels, found, mesh)


def with_head(found, head):
  """Returns a `Pretrained` to which the parameters of a `Head` are added."""
  unused = tuple(
    name for name in found.unused if name.split(".")[0] not in head.params
  )
  params = found.params | head.params
  return dataclasses.replace(found, params=params, unused=unused)


def _few(labels):
  shown = ", ".join(labels[:4])
  return shown if len(labels) <= 4 else f"{shown}, ... ({len(labels)} labels)"


def init_params(module, key):
  """Draws fresh weights.

  Args:
    module: linen module of `heads.py`.
    key: PRNG key.

  Returns:
    Nested dict of float32 arrays.
  """
  tokens = jnp.zeros((1, 1), jnp.int32)
  return module.init(key, tokens, tokens, tokens == 0, deterministic=True)[
    "params"
  ]


def create_params(model):
  """Makes the weights that training starts from.

  Args:
    model: `TaskModel`.

  Returns:
    (nested dict of sharded arrays, tuple of the paths that are fresh).
  """
  shapes = jax.eval_shape(lambda: init_params(model.module, jax.random.key(0)))
  shardings = partitioning.param_shardings(model.mesh, shapes)
  if model.config.pretrained:
    found = hf.flatten(model.pretrained.params)
    if hf.flatten(shapes).keys() <= found.keys():
      # To compile the drawing takes longer than a prediction.
      abstract = partitioning.abstract_arrays(shapes, shardings)
      return pretrained.take_over(abstract, model.pretrained)
  draw = jax.jit(
    lambda key: init_params(model.module, key), out_shardings=shardings
  )
  params = draw(jax.random.key(model.config.seed))
  if not model.config.pretrained:
    return params, tuple(flax.traverse_util.flatten_dict(params, sep="/"))
  return pretrained.take_over(params, model.pretrained)


def encode(model, rows, *, labelled):
  """Turns rows to `Features`, with labels if the rows have them.

  Raises:
    UserError: a label is not one of the model's.
  """
  found = model.pretrained
  features = model.kind.encode(rows, found.create_tokenizer(), model.config)
  if not labelled:
    return features
  labels = model.kind.labels(rows, features, model.labels)
  per_token = features.per_token
  if model.kind.labels_per_token:
    per_token = (*per_token, "labels")
  return dataclasses.replace(
    features, arrays=features.arrays | {"labels": labels}, per_token=per_token
  )


def apply(module, params, inputs, dropout_key):
  """Runs a module on a batch.

  Args:
    module: linen module of `heads.py`.
    params: its parameters.
    inputs: dict of arrays of a batch, see `Features`.
    dropout_key: PRNG key, or None for no dropout.

  Returns:
    logits: float32 [B, ...], or [B, T, ...] of T texts.
    attention_mask: bool [B, L], or [B * T, L].
  """
  *rows, slots = inputs["input_ids"].shape
  token_type_ids, attention_mask = segment_inputs(
    inputs["a_length"].reshape(-1), inputs["length"].reshape(-1), slots
  )
  logits = module.apply(
    {"params": params},
    inputs["input_ids"].reshape(-1, slots),
    inputs.get("token_type_ids", token_type_ids),
    attention_mask,
    deterministic=dropout_key is None,
    rngs=None if dropout_key is None else {"dropout": dropout_key},
  )
  return logits.reshape(*rows, *logits.shape[1:]), attention_mask


def make_predict(model, params):
  """Builds the prediction of a whole data set.

  Args:
    model: `TaskModel`.
    params: nested dict of arrays or shapes.

  Returns:
    Function (params, features) -> logits, float32 numpy [N, ...]; `NEVER` at
    the slots that a feature's batch did not have.
  """
  mesh, batch_size = model.mesh, model.config.train.batch_size

  def logits_of(params, batch):
    return apply(model.module, params, batch, None)[0]

  step = jax.jit(
    mesh_lib.traced_on(mesh, logits_of),
    in_shardings=(
      partitioning.param_shardings(mesh, params),
      rows_lib.batch_sharding(mesh),
    ),
    # Replicated: every process reads the logits of all rows.
    out_shardings=NamedSharding(mesh, PartitionSpec()),
  )
  rows = rows_lib.local_rows(mesh, batch_size)

  def predict(params, features):
    found = []
    for chosen, batch in eval_batches(features, batch_size):
      batch = {name: array[rows] for name, array in batch.items()}
      found.append((chosen, step(params, rows_lib.global_batch(mesh, batch))))
    shape = abstract_logits(model, features).shape
    logits = np.full((len(features), *shape[1:]), NEVER, np.float32)
    for chosen, some in jax.device_get(found):
      logits[(chosen, *map(slice, some.shape[1:]))] = some
    return logits

  return predict


def abstract_logits(model, features):
  """Returns the shape of the logits of one feature, all of its slots counted.

  Args:
    model: `TaskModel`.
    features: `Features`.

  Returns:
    `jax.ShapeDtypeStruct` [1, ...].
  """
  params = jax.eval_shape(lambda: init_params(model.module, jax.random.key(0)))
  batch = {
    name: jnp.asarray(array[:1]) for name, array in features.arrays.items()
  }
  return jax.eval_shape(
    lambda params: apply(model.module, params, batch, None)[0], params
  )


def decode(model, logits, rows, features):
  """Turns the logits of a data set to predictions, a dict for each row."""
  return model.kind.decode(logits, rows, features, model.labels, model.config)


def save_model(output_dir, params, model, model_card):
  """Writes a fine-tuned model as transformers loads it.

  Args:
    output_dir: see `hf.save_pretrained`.
    params: nested dict of numpy arrays.
    model: `TaskModel`.
    model_card: text of README.md.
  """
  settings, extra_files = {}, {}
  is_classifier = model.kind.heads == "sequence-classification"
  if model.kind.heads in hf.TASK_HEADS:
    settings = {
      "id2label": {str(i): label for i, label in enumerate(model.labels)},
      "label2id": {label: i for i, label in enumerate(model.labels)},
    }
  if is_classifier or model.kind.heads == "encoder":
    extra_files = similarity.sentence_transformers_files(
      model.bert_config.hidden_size,
      model.config.task.pooling,
      model.config.data.max_seq_length,
      is_classifier,
    )
  if model.kind.problem_type:
    settings["problem_type"] = model.kind.problem_type
  # Where transformers' pipelines truncate. Tagging here cuts a long sentence
  # into several inputs instead.
  max_length = model.config.data.max_seq_length
  if model.config.task.kind == "tagging":
    max_length = model.bert_config.max_position_embeddings
  hf.save_pretrained(
    output_dir,
    params,
    model.bert_config,
    model.pretrained.vocab,
    lowercase=model.pretrained.lowercase,
    strip_accents=model.pretrained.strip_accents,
    added_tokens=model.pretrained.added_tokens,
    heads=model.kind.heads,
    model_card=model_card,
    max_length=max_length,
    settings=settings,
    extra_files=extra_files,
  )
