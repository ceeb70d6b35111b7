"""Adam's moments of a checkpoint: read to continue from them, or exported."""

import jax
import numpy as np
import optax
import safetensors.numpy

from bert_jax.config import num_train_steps
from bert_jax.model.bert import create_params
from bert_jax.sharding import partitioning
from bert_jax.storage import checkpoints
from bert_jax.training.optimizer import create_optimizer
from bert_jax.training.train_state import create_train_state
from bert_jax.weights import hf


def is_adam_state(node):
  """Tells whether a node of an optimizer state holds Adam's moments."""
  return isinstance(node, optax.ScaleByAdamState)


def find_adam_state(opt_state):
  """Returns the only `optax.ScaleByAdamState` of an optimizer state."""
  leaves = jax.tree.leaves(opt_state, is_leaf=is_adam_state)
  (found,) = filter(is_adam_state, leaves)
  return found


def load_adam_state(workdir, config, bert_config, mesh, step=None):
  """Reads the moments of a checkpoint.

  Args:
    workdir: `epath.Path` of a run.
    config: its settings.
    bert_config: `BertConfig` of its model.
    mesh: `jax.sharding.Mesh`, over which the moments are sharded.
    step: int; the newest checkpoint by default.

  Returns:
    `optax.ScaleByAdamState` of arrays sharded over the mesh.

  Raises:
    UserError: there is no such checkpoint, or it is broken.
  """
  optimizer = create_optimizer(config.optimizer, num_train_steps(config))
  shapes = jax.eval_shape(
    lambda: create_train_state(
      create_params(bert_config, jax.random.key(0)), optimizer
    )
  )
  abstract = partitioning.abstract_state(mesh, shapes, optimizer)
  state, _ = checkpoints.restore(workdir, abstract, step)
  return find_adam_state(state.opt_state)


def to_file(adam_state, bert_config):
  """Serialises moments under the Hugging Face names of their weights.

  Args:
    adam_state: `optax.ScaleByAdamState`.
    bert_config: `BertConfig`.

  Returns:
    bytes of a safetensors file: "exp_avg.NAME" and "exp_avg_sq.NAME", as
    torch's AdamW calls them, in the layout of the weight NAME, and "step".
  """
  tensors = {"step": np.asarray(adam_state.count, np.int64).reshape(1)}
  for prefix, moments in (
    ("exp_avg", adam_state.mu),
    ("exp_avg_sq", adam_state.nu),
  ):
    found = hf.to_hf(moments, bert_config, "pretraining")
    tensors |= {f"{prefix}.{name}": array for name, array in found.items()}
  return safetensors.numpy.save(tensors, metadata={"format": "pt"})
