"""Pretraining losses and accuracies as (sum, weight) pairs.

Sums add up over devices, micro-batches and evaluation batches; the division
happens once, at the end. A mean of the devices' means would give more weight to
the masked tokens of devices that hold few of them.

Shapes: `B` batch, `K` predictions a sequence, `V` vocabulary.
"""

import jax
import jax.numpy as jnp
import optax

# Divides the logits of student and teacher (Sanh et al. 2019, DistilBERT's
# training).
TEMPERATURE = 2.0


def masked_lm_loss(logits, ids, weights):
  """Cross-entropy of the masked tokens, in nats.

  Args:
    logits: float [B, K, V].
    ids: int32 [B, K], the tokens that were masked.
    weights: float [B, K], 1 for real predictions and 0 for unused slots.

  Returns:
    (sum, weight), both float32 scalars.
  """
  logits, ids, weights = _flatten(logits, ids, weights)
  losses = jax.nn.logsumexp(logits, axis=-1) - _own_logit(logits, ids)
  return (losses * weights).sum(), weights.sum()


def masked_lm_accuracy(logits, ids, weights):
  """Share of masked tokens whose logit is the largest of the vocabulary.

  Compared with the maximum: an argmax was a sixth of a two-layer model's step
  on a CPU.

  Args:
    logits: float [B, K, V].
    ids: int32 [B, K], the tokens that were masked.
    weights: float [B, K], 1 for real predictions and 0 for unused slots.

  Returns:
    (sum, weight), both float32 scalars.
  """
  logits, ids, weights = _flatten(logits, ids, weights)
  right = _own_logit(logits, ids) >= logits.max(-1)
  return (right * weights).sum(), weights.sum()


def _flatten(logits, ids, weights):
  """Merges B and K into one dimension, as in the matrix product of the head."""
  logits = logits.reshape(-1, logits.shape[-1]).astype(jnp.float32)
  return logits, ids.reshape(-1), weights.reshape(-1)


def _own_logit(logits, ids):
  """Returns the logit of each masked token, float32 [B * K].

  A masked sum over the vocabulary, which XLA fuses with the softmax on a TPU; a
  gather writes all logits to memory first. Two layers of BERT-base, 256 x 128
  on 16 chips of v5e: 3.87 ms and not 4.02 (the compiler's estimate).
  """
  is_own = ids[:, None] == jnp.arange(logits.shape[-1])[None]
  return jnp.where(is_own, logits, 0).sum(-1)


def distillation_loss(logits, teacher_logits, weights):
  """KL divergence of the student's predictions from the teacher's, in nats.

  Both logits are divided by `TEMPERATURE` and the divergence is multiplied by
  its square, so that the gradient keeps its size (Hinton et al. 2015, section
  2).

  Args:
    logits: float [B, K, V].
    teacher_logits: float [B, K, V].
    weights: float [B, K], 1 for real predictions and 0 for unused slots.

  Returns:
    (sum, weight), both float32 scalars.
  """
  student, teacher = (
    jax.nn.log_softmax(x.astype(jnp.float32) / TEMPERATURE)
    for x in (logits, teacher_logits)
  )
  divergences = (jnp.exp(teacher) * (teacher - student)).sum(-1)
  total = TEMPERATURE**2 * (divergences * weights).sum()
  return total, weights.sum()


def next_sentence_loss(logits, labels):
  """Cross-entropy of "does B follow A", in nats.

  Args:
    logits: float [B, 2].
    labels: int32 [B], 0 is "next" and 1 is "random".

  Returns:
    (sum, weight), both float32 scalars; each sequence weighs 1.
  """
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits.astype(jnp.float32), labels
  )
  return losses.sum(), jnp.float32(labels.size)


def next_sentence_accuracy(logits, labels):
  """Share of pairs whose label is predicted.

  Args:
    logits: float [B, 2].
    labels: int32 [B], 0 is "next" and 1 is "random".

  Returns:
    (sum, weight), both float32 scalars; each sequence weighs 1.
  """
  right = (logits.argmax(-1) == labels).astype(jnp.float32)
  return right.sum(), jnp.float32(labels.size)


def pretraining_sums(mlm_logits, nsp_logits, batch):
  """Every loss and accuracy of a pretraining batch.

  Args:
    mlm_logits: float [B, K, V].
    nsp_logits: float [B, 2].
    batch: dict with masked_lm_ids int32 [B, K], masked_lm_weights float
      [B, K] and next_sentence_labels int32 [B].

  Returns:
    dict of (sum, weight): mlm_loss, mlm_accuracy, nsp_loss, nsp_accuracy and
    nsp_base_rate, the share of "random" labels.
  """
  masked = batch["masked_lm_ids"], batch["masked_lm_weights"]
  labels = batch["next_sentence_labels"]
  random = labels.astype(jnp.float32).sum()
  return {
    "mlm_loss": masked_lm_loss(mlm_logits, *masked),
    "mlm_accuracy": masked_lm_accuracy(mlm_logits, *masked),
    "nsp_loss": next_sentence_loss(nsp_logits, labels),
    "nsp_accuracy": next_sentence_accuracy(nsp_logits, labels),
    "nsp_base_rate": (random, jnp.float32(labels.size)),
  }
