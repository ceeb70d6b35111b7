"""Masked language model plus next sentence prediction (BERT, section 3.1)."""

import jax.numpy as jnp

from bert_jax.config import num_train_steps
from bert_jax.model.bert import BertForPreTraining, segment_inputs
from bert_jax.pretraining import diagnosis, losses, masking
from bert_jax.training import step as step_lib
from bert_jax.training.optimizer import create_schedule

LOSSES = ("mlm_loss", "nsp_loss")


def create_objective(
  config,
  phase,
  bert_config,
  masking_vocab,
  teacher=None,
  frequency_bands=None,
):
  """Builds the objective of one phase.

  A batch holds input_ids [B, L], a_length, length and next_sentence_labels
  [B]; segment ids, attention mask and masks are made on the device.

  Args:
    config: the run's settings.
    phase: `config.phase1` or `config.phase2`.
    bert_config: `BertConfig`.
    masking_vocab: `MaskingVocab`.
    teacher: `distillation.Teacher`, whose predictions of the masked tokens are
      learnt besides, or None.
    frequency_bands: int8 [V], see `diagnosis.create_frequency_bands`; the sums
      have the parts of `diagnosis.diagnostic_sums` too if given, as evaluation
      wants them and a train step does not.

  Returns:
    `step.Objective`.
  """

  def make_inputs(key, batch):
    token_type_ids, attention_mask = segment_inputs(
      batch["a_length"], batch["length"], phase.max_seq_length
    )
    masked = masking.mask_tokens(
      key,
      batch["input_ids"].astype(jnp.int32),
      batch["length"],
      masking_vocab,
      max_predictions=phase.max_predictions,
      **config.masking,
    )
    return masked | {
      "token_type_ids": token_type_ids,
      "attention_mask": attention_mask,
      "next_sentence_labels": batch["next_sentence_labels"],
    }

  def loss_weights(inputs):
    num_masked = inputs["masked_lm_weights"].sum()
    weights = {
      "mlm_loss": num_masked,
      "nsp_loss": jnp.float32(len(inputs["next_sentence_labels"])),
    }
    return weights | ({"distillation_loss": num_masked} if teacher else {})

  def sums(params, inputs, dropout_key, teacher_params=None):
    mlm_logits, nsp_logits = _apply(bert_config, params, inputs, dropout_key)
    mask = inputs["attention_mask"]
    found = losses.pretraining_sums(mlm_logits, nsp_logits, inputs) | {
      "fill": (mask.sum(dtype=jnp.float32), jnp.float32(mask.size))
    }
    if teacher_params is not None:
      teacher_logits, _ = _apply(
        teacher.bert_config, teacher_params, inputs, None
      )
      found["distillation_loss"] = losses.distillation_loss(
        mlm_logits, teacher_logits, inputs["masked_lm_weights"]
      )
    if frequency_bands is not None:
      found |= diagnosis.diagnostic_sums(
        mlm_logits, nsp_logits, inputs, frequency_bands, masking_vocab.mask_id
      )
    return found

  return step_lib.Objective(
    make_inputs,
    loss_weights,
    sums,
    dtype=bert_config.dtype,
    head_size=bert_config.head_size,
    teacher_params=teacher and teacher.params,
    teacher_head_size=teacher.bert_config.head_size if teacher else 0,
  )


def _apply(bert_config, params, inputs, dropout_key):
  """Returns the logits of both heads, see `BertForPreTraining`."""
  return BertForPreTraining(bert_config).apply(
    {"params": params},
    inputs["input_ids"],
    inputs["token_type_ids"],
    inputs["attention_mask"],
    inputs["masked_lm_positions"],
    deterministic=dropout_key is None,
    rngs=None if dropout_key is None else {"dropout": dropout_key},
  )


def make_train_step(run, name, state):
  """Builds the train step of phase `name` of a `Run`, see `training.step`."""
  return step_lib.make_train_step(
    run.config,
    _objective(run, name, run.teacher),
    run.optimizer,
    create_schedule(run.config.optimizer, num_train_steps(run.config)),
    run.mesh,
    state,
  )


def make_eval_step(run, name, params):
  """Builds the eval step of phase `name` of a `Run`, see `training.step`.

  No teacher takes part, so that the figures of all runs compare. The sums have
  the parts of `diagnosis.diagnostic_sums` too.
  """
  objective = _objective(run, name, frequency_bands=run.frequency_bands)
  return step_lib.make_eval_step(objective, run.mesh, params)


def _objective(run, name, teacher=None, frequency_bands=None):
  return create_objective(
    run.config,
    run.config[name],
    run.bert_config,
    run.masking_vocab,
    teacher,
    frequency_bands,
  )
