"""Fine-tunes a Hugging Face folder with torch, to compare with ours.

    python -m tests.finetune.torch_finetune --init=H --seeds=3 \\
      --config=configs/finetune_glue.py:sst2 \\
      --config.data.train=train.tsv --config.data.dev=dev.tsv

Model, dropout, loss and AdamW are transformers' and torch's. Rows, features
(our tokenizer with the folder's vocabulary), settings, number of steps and
metrics are those of `python -m bert_jax.finetune` with the same --config. As
transformers' Trainer does, it draws the rows of each batch from all of the
training data and pads them to the batch's longest. Sentences, pairs and
questions only. `--config.pretrained=False` starts from random weights.

It measures after the last step and chooses no checkpoint by the dev set. For a
fair comparison let ours do the same: --config.eval.every_steps=1000000000.
"""

import json

import numpy as np
import torch
import transformers
from absl import flags

from bert_jax import command
from bert_jax.data.tokenization import create_tokenizer
from bert_jax.finetune.config import (
  default_config,
  num_train_steps,
  resolve,
  validate,
)
from bert_jax.finetune.tasks import KINDS
from bert_jax.model.bert import NEVER

_CLASSES = {
  "sequence-classification": transformers.BertForSequenceClassification,
  "question-answering": transformers.BertForQuestionAnswering,
}


def create_model(kind, folder, names, config):
  """Returns the torch model, random but for what the folder holds.

  Args:
    kind: `tasks.Kind`.
    folder: Hugging Face folder.
    names: tuple of str, the labels.
    config: settings as of bert_jax.finetune.
  """
  settings = transformers.BertConfig.from_pretrained(
    folder,
    id2label=dict(enumerate(names)),
    label2id={name: i for i, name in enumerate(names)},
    problem_type=kind.problem_type,
  )
  model_class = _CLASSES[kind.heads]
  if not config.pretrained:
    return model_class(settings)
  return model_class.from_pretrained(folder, config=settings)


def _inputs(features, rows, device):
  """Returns the model's inputs for some rows, padded to the longest."""
  arrays = features.arrays
  length, a_length = arrays["length"][rows], arrays["a_length"][rows]
  slots = np.arange(length.max())[None]
  mask = slots < length[:, None]
  inputs = {
    "input_ids": arrays["input_ids"][rows][:, : length.max()],
    "attention_mask": mask,
    "token_type_ids": (slots >= a_length[:, None] + 2) & mask,
  }
  return {
    name: torch.tensor(array.astype(np.int64), device=device)
    for name, array in inputs.items()
  }


def _labels(kind, labels, device):
  labels = torch.tensor(labels, device=device)
  labels = labels if labels.is_floating_point() else labels.long()
  if kind.heads == "question-answering":
    return {"start_positions": labels[:, 0], "end_positions": labels[:, 1]}
  return {"labels": labels}


def _create_optimizer(model, config, num_steps):
  """Returns AdamW and its schedule: warm-up, then linearly to 0."""
  plain, decayed = [], []
  for name, parameter in model.named_parameters():
    is_plain = name.endswith("bias") or "LayerNorm" in name
    (plain if is_plain else decayed).append(parameter)
  optimizer = torch.optim.AdamW(
    [
      {"params": decayed, "weight_decay": config.weight_decay},
      {"params": plain, "weight_decay": 0.0},
    ],
    lr=config.learning_rate,
    betas=(config.beta1, config.beta2),
    eps=config.eps,
  )
  warmup = max(config.warmup_steps, 1)
  decay = num_steps - config.warmup_steps
  schedule = torch.optim.lr_scheduler.LambdaLR(
    optimizer, lambda t: min((t + 1) / warmup, (num_steps - t) / decay, 1)
  )
  return optimizer, schedule


def iterate_rows(features, config, num_steps):
  """Yields the rows of each batch, int [batch_size], in a random order.

  Args:
    features: `Features`.
    config: settings as of bert_jax.finetune.
    num_steps: how many batches.
  """
  orders = np.random.default_rng(config.seed)
  order = np.zeros(0, int)
  for _ in range(num_steps):
    if len(order) < config.train.batch_size:
      order = np.concatenate([order, orders.permutation(len(features))])
    yield order[: config.train.batch_size]
    order = order[config.train.batch_size :]


def iterate_losses(model, kind, features, labels, config, batches, num_steps):
  """Trains a step for each batch, and yields its loss.

  Args:
    model: torch model.
    kind: `tasks.Kind`.
    features: `Features`.
    labels: numpy array [N, ...].
    config: settings with optimizer.warmup_steps.
    batches: iterable of int [batch_size], the rows of each step.
    num_steps: of the whole schedule.

  Yields:
    float.
  """
  optimizer, schedule = _create_optimizer(model, config.optimizer, num_steps)
  use_bfloat16 = config.model.dtype == "bfloat16"
  device = model.device
  model.train()
  for rows in batches:
    with torch.autocast(device.type, torch.bfloat16, enabled=use_bfloat16):
      loss = model(
        **_inputs(features, rows, device),
        **_labels(kind, labels[rows], device),
      ).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(
      model.parameters(), config.optimizer.max_grad_norm
    )
    optimizer.step()
    schedule.step()
    yield loss.item()


@torch.no_grad()
def predict(model, kind, features, config):
  """Returns the logits of all rows in their order, float32 numpy [N, ...]."""
  model.eval()
  logits = []
  for first in range(0, len(features), config.train.batch_size):
    rows = np.arange(first, min(first + config.train.batch_size, len(features)))
    outputs = model(**_inputs(features, rows, model.device))
    if kind.heads == "question-answering":
      both = torch.stack([outputs.start_logits, outputs.end_logits], 1)
      padding = (0, features.max_seq_length - both.shape[-1])
      both = torch.nn.functional.pad(both, padding, value=NEVER)
      logits.append(both.float().cpu().numpy())
    else:
      logits.append(outputs.logits.float().cpu().numpy())
  return np.concatenate(logits)


def finetune(config, folder):
  """Fine-tunes once.

  Args:
    config: settings as of bert_jax.finetune.
    folder: Hugging Face folder.

  Returns:
    dict of metrics after the last step.
  """
  validate(config)
  kind = KINDS[config.task.kind]
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  vocab = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
  ours = create_tokenizer(vocab, getattr(tokenizer, "do_lower_case", True))
  rows = {
    split: kind.read_rows(config.data[split], config, labelled=True)
    for split in ("train", "dev")
  }
  names = kind.label_names(rows["train"])
  train, dev = (
    kind.encode(rows[split], ours, config) for split in ("train", "dev")
  )
  labels = kind.labels(rows["train"], train, names)
  num_steps = num_train_steps(config, len(train))
  config = resolve(config, len(train))
  torch.manual_seed(config.seed)
  device = "cuda" if torch.cuda.is_available() else "cpu"
  model = create_model(kind, folder, names, config).to(device)
  batches = iterate_rows(train, config, num_steps)
  losses = iterate_losses(
    model, kind, train, labels, config, batches, num_steps
  )
  for step, loss in enumerate(losses, start=1):
    if step % config.log.every_steps == 0:
      print(f"step {step:,}/{num_steps:,}: loss {loss:.4f}")
  logits = predict(model, kind, dev, config)
  predictions = kind.decode(logits, rows["dev"], dev, names, config)
  return kind.score(predictions, rows["dev"], names)


def main(argv):
  """Runs the command."""
  del argv
  config = command.config()
  found = []
  for seed in range(flags.FLAGS.seeds):
    config.seed = seed
    found.append(finetune(config, flags.FLAGS.init))
    print(json.dumps({"seed": seed} | found[-1]))
  for name in found[0]:
    values = [scores[name] for scores in found]
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    print(
      f"torch: {name} {np.mean(values):.4f} +- {deviation:.4f} over "
      f"{len(values)} seeds ({', '.join(f'{v:.4f}' for v in values)})"
    )


if __name__ == "__main__":
  command.define_config_flag()
  flags.DEFINE_string("init", None, "Hugging Face folder.")
  flags.DEFINE_integer("seeds", 3, "Number of runs.")
  command.run(main, default_config)
