"""Measures the peer of `bench`: a training step of transformers' BERT on torch.

`BertForPreTraining` with sdpa attention, autocast to the same dtype, fused
AdamW and the same clipping, on a batch that is made and masked beforehand. Two
masked-LM heads: transformers' own, which scores the whole vocabulary at every
position, and the same head at the masked positions only. Each eager or through
torch.compile.

Imports torch and nothing of JAX; it runs in its own process.
"""

import dataclasses
import resource

import numpy as np
import torch
import transformers

from bert_jax.benchmark.stopwatch import time_repeats
from bert_jax.errors import DoesNotFitError

_IGNORED = -100  # a label without a loss


def measure_step(config, name, seconds, head, is_compiled):
  """Measures a training step on the first GPU, or on the CPU.

  Args:
    config: validated settings.
    name: "phase1" or "phase2".
    seconds: float, how long to measure.
    head: "full" or "gathered".
    is_compiled: whether it goes through torch.compile.

  Returns:
    dict with seconds a step, and memory as in `ours.measure_step`.

  Raises:
    DoesNotFitError: the device has too little memory.
  """
  try:
    return _measure_step(config, name, seconds, head, is_compiled)
  except torch.OutOfMemoryError as e:
    raise DoesNotFitError(str(e).splitlines()[0]) from None


def _measure_step(config, name, seconds, head, is_compiled):
  torch.manual_seed(config.seed)
  # As in JAX, float32 matrix multiplications may run as TF32 on a GPU.
  torch.set_float32_matmul_precision("high")
  device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
  model = create_model(config).to(device).train()
  loss_of = {"full": full_loss, "gathered": gathered_loss}[head]
  if is_compiled:
    loss_of = torch.compile(loss_of)
  batch = create_batch(config, name, device)
  optimizer = torch.optim.AdamW(
    model.parameters(),
    config.optimizer.learning_rate,
    betas=(config.optimizer.beta1, config.optimizer.beta2),
    eps=config.optimizer.eps,
    weight_decay=config.optimizer.weight_decay,
    fused=True,
  )
  dtype = getattr(torch, config.model.dtype)

  def repeat(times):
    for _ in range(times):
      with torch.autocast(device.type, dtype, dtype != torch.float32):
        loss = loss_of(model, batch)
      loss.backward()
      torch.nn.utils.clip_grad_norm_(
        model.parameters(), config.optimizer.max_grad_norm
      )
      optimizer.step()
      optimizer.zero_grad()
    loss.item()  # waits for the device

  timing = time_repeats(repeat, seconds)
  return dataclasses.asdict(timing) | {"memory_bytes": _peak_memory(device)}


def create_model(config):
  """Creates transformers' model of the same architecture."""
  settings = dict(config.model)
  del settings["dtype"], settings["remat"]
  return transformers.BertForPreTraining._from_config(
    transformers.BertConfig(vocab_size=config.corpus.vocab_size, **settings),
    attn_implementation="sdpa",
  )


def create_batch(config, name, device):
  """Creates one batch of sequences without padding.

  Args:
    config: validated settings.
    name: "phase1" or "phase2".
    device: torch device.

  Returns:
    dict of int64 tensors: the model's inputs; `labels` [B, L] for its own
    head; `positions` and `ids` [B, K] for the gathered one.
  """
  phase, rng = config[name], np.random.default_rng(config.seed)
  rows, length, predicted = (
    phase.batch_size,
    phase.max_seq_length,
    phase.max_predictions,
  )
  tokens = rng.integers(5, config.corpus.vocab_size, (rows, length))
  order = rng.permuted(np.tile(np.arange(length), (rows, 1)), axis=1)
  positions = np.sort(order[:, :predicted], axis=1)
  ids = np.take_along_axis(tokens, positions, axis=1)
  labels = np.full((rows, length), _IGNORED)
  np.put_along_axis(labels, positions, ids, axis=1)
  arrays = {
    "input_ids": tokens,
    "token_type_ids": np.tile(np.arange(length) > length // 2, (rows, 1)),
    "attention_mask": np.ones((rows, length)),
    "labels": labels,
    "positions": positions,
    "ids": ids,
    "next_sentence_label": rng.integers(2, size=rows),
  }
  return {
    key: torch.tensor(array.astype(np.int64), device=device)
    for key, array in arrays.items()
  }


def full_loss(model, batch):
  """Returns the loss with transformers' own head, a scalar."""
  inputs = {k: v for k, v in batch.items() if k not in ("positions", "ids")}
  return model(**inputs).loss


def gathered_loss(model, batch):
  """Returns the loss with the head at the masked positions, a scalar."""
  outputs = model.bert(
    batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
  )
  hidden = outputs.last_hidden_state
  index = batch["positions"][:, :, None].expand(-1, -1, hidden.shape[-1])
  mlm_logits, nsp_logits = model.cls(
    hidden.gather(1, index), outputs.pooler_output
  )
  cross_entropy = torch.nn.functional.cross_entropy
  mlm_loss = cross_entropy(mlm_logits.flatten(0, 1), batch["ids"].flatten())
  return mlm_loss + cross_entropy(nsp_logits, batch["next_sentence_label"])


def _peak_memory(device):
  if device.type == "cuda":
    return torch.cuda.max_memory_allocated()
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
