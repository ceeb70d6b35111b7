"""The README.md of a fine-tuned model."""

from bert_jax.weights.model_card import without_folder

_PIPELINES = {
  "sequence-classification": "text-classification",
  "token-classification": "token-classification",
  "question-answering": "question-answering",
  "encoder": "sentence-similarity",
}

_LIBRARIES = {"encoder": "sentence-transformers"}

_MODEL_CARD = """\
---
library_name: {library}
pipeline_tag: {pipeline_tag}
license: other
tags:
- bert
---

# BERT, {num_layers} layers of {hidden_size}, fine-tuned: {kind}

Fine-tuned with bert_jax, a JAX implementation of BERT ([Devlin et al.
2018](https://arxiv.org/abs/1810.04805)); all parameters were
trained.

| | |
|---|---|
| started from | {init} |
| training data | `{train}` |
| labels | {labels} |
| training | {num_epochs:g} epochs, batch {batch_size}, peak learning rate \
{learning_rate:g}, length {max_seq_length}, seed {seed} |

## Held-out figures

On `{dev}`, which also chose the checkpoint:

| | |
|---|---|
{scores}

## What it is not good for

It has learnt what its text and its labels say, with their biases and errors.
Measure it on your own data before you rely on it.
Licence: the texts' licences decide; fill in the `license` field above.
"""


def model_card(model, scores):
  """Fills in the card.

  Args:
    model: `TaskModel`.
    scores: dict of metrics.

  Returns:
    str, Markdown.
  """
  config = model.config
  return _MODEL_CARD.format(
    library=_LIBRARIES.get(model.kind.heads, "transformers"),
    pipeline_tag=_PIPELINES[model.kind.heads],
    num_layers=model.bert_config.num_hidden_layers,
    hidden_size=model.bert_config.hidden_size,
    kind=config.task.kind.replace("_", " "),
    init=(
      f"`{without_folder(model.pretrained.source)}`"
      if config.pretrained
      else "random weights"
    ),
    train=without_folder(config.data.train),
    dev=without_folder(config.data.dev),
    labels=", ".join(f"`{label}`" for label in model.labels),
    num_epochs=config.train.num_epochs,
    batch_size=config.train.batch_size,
    learning_rate=config.optimizer.learning_rate,
    max_seq_length=config.data.max_seq_length,
    seed=config.seed,
    scores="\n".join(
      f"| {name} | {value:.4f} |" for name, value in scores.items()
    ),
  )
