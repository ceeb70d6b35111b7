"""Fine-tuning as a stage of the training loop: its objective and batches."""

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.data.pipeline import iterate_batches
from bert_jax.finetune import losses
from bert_jax.finetune import model as model_lib
from bert_jax.finetune.features import TrainingExamples
from bert_jax.sharding import rows as rows_lib
from bert_jax.training import flops
from bert_jax.training import loop as loop_lib
from bert_jax.training import step as step_lib
from bert_jax.training.optimizer import create_schedule


def create_objective(model):
  """Builds the objective that a step of fine-tuning trains.

  Args:
    model: `TaskModel`.

  Returns:
    `step.Objective`; a batch holds what `Features.arrays` does.
  """

  def sums(params, inputs, dropout_key):
    logits, mask = model_lib.apply(model.module, params, inputs, dropout_key)
    return {
      "loss": model.kind.loss(logits, inputs["labels"]),
      "fill": (mask.sum(dtype=jnp.float32), jnp.float32(mask.size)),
    }

  return step_lib.Objective(
    make_inputs=lambda key, batch: batch,
    loss_weights=lambda inputs: {"loss": losses.weight(inputs["labels"])},
    sums=sums,
    dtype=model.bert_config.dtype,
    head_size=model.bert_config.head_size,
  )


def create_stage(run, state, evaluate):
  """Builds the one stage of a fine-tuning, with a program for each length.

  Args:
    run: `run.FineTuning`.
    state: `TrainState` of arrays or shapes.
    evaluate: function of params to a dict of floats.

  Returns:
    `loop.Stage`.
  """
  config, mesh = run.config, run.model.mesh
  batch_size = config.train.batch_size
  examples = TrainingExamples(run.train, config.seed, batch_size, run.num_steps)
  slots = examples.slots()
  mean_slots = float(np.mean(slots))
  texts = run.train.arrays["length"].size // len(run.train)

  def batches(step):
    rows = rows_lib.local_rows(mesh, batch_size)
    return iterate_batches(examples, batch_size, step, run.num_steps, rows)

  return loop_lib.Stage(
    name="finetune",
    end=run.num_steps,
    batch_size=batch_size,
    max_seq_length=mean_slots,
    flops_per_step=flops.count_train_flops(
      run.model.bert_config,
      texts * batch_size,
      mean_slots,
      max_predictions=0,
    ),
    train_step=step_lib.make_train_step(
      config,
      create_objective(run.model),
      run.optimizer,
      create_schedule(config.optimizer, run.num_steps),
      mesh,
      state,
    ),
    abstract_batches=[
      _abstract_batch(run, slots) for slots in sorted(set(slots))[::-1]
    ],
    iterate_batches=batches,
    evaluate=evaluate,
  )


def _abstract_batch(run, slots):
  """Returns shapes and shardings of a batch of so many slots a text."""
  features = run.train
  sharding = rows_lib.batch_sharding(run.model.mesh)

  def rows(name, array):
    shape = (run.config.train.batch_size, *array.shape[1:])
    if name in features.per_token:
      shape = (*shape[:-1], slots)
    return jax.ShapeDtypeStruct(shape, array.dtype, sharding=sharding)

  return {name: rows(name, array) for name, array in features.arrays.items()}
