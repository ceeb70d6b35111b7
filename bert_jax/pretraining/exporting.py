"""Exports checkpoints as Hugging Face folders with a model card."""

import json
import sys

import jax

from bert_jax.config import active_phases, default_config, num_train_steps
from bert_jax.data.vocabulary import load_vocabulary
from bert_jax.distributed.joining import joined
from bert_jax.errors import UserError
from bert_jax.model.bert import create_bert_config
from bert_jax.pretraining import initialization, learning_curve, moments
from bert_jax.sharding import mesh as mesh_lib
from bert_jax.storage import checkpoints, files, metric_log, paths
from bert_jax.storage import workdir as workdir_lib
from bert_jax.weights import hf
from bert_jax.weights.model_card import without_folder
from bert_jax.weights.pretrained import load_run_params, trained_length

_CURVE = """
![learning curve](curve.png)

The figures of every step that was logged are in `metrics.jsonl`.
"""
_MODEL_CARD = """\
---
library_name: transformers
pipeline_tag: {pipeline_tag}
license: other
tags:
- bert
- {heads}
---

# BERT, {num_layers} layers of {hidden_size}, after {step:,} steps

{beginning} with bert_jax, a JAX implementation of BERT ([Devlin et
al. 2018](https://arxiv.org/abs/1810.04805)): masked language model and next
sentence prediction.

| | |
|---|---|
| text | `{source}`{corpus} |
| vocabulary | WordPiece, {vocab_size:,} entries, {casing} |
| model | {num_layers} layers, hidden size {hidden_size}, {num_heads} heads, \
feed-forward {intermediate_size}, {hidden_act} |
| longest input | {max_length} tokens, the longest length trained |
| training | {step:,} of {num_steps:,} steps: {phases} |
| optimizer | {optimizer}, peak learning rate {learning_rate:g}, \
{warmup_steps:,} warm-up steps, weight decay {weight_decay:g} |

## Held-out figures

{held_out}
{curve}
## What it is not good for

It repeats what its text says and how it says it, with the biases and errors of
that text; it knows nothing past it. It fills masks and encodes text; it does
not write. Fine-tune it before use on a task, and measure it on that task.
Licence: the text's licence decides; fill in the `license` field above.
"""


def export(
  workdir, output, heads="pretraining", step=None, with_optimizer=False
):
  """Exports a checkpoint.

  Args:
    workdir: a run's folder.
    output: folder to write; an earlier export is replaced.
    heads: a key of `hf.HEADS`.
    step: int, or "best"; the newest checkpoint by default.
    with_optimizer: whether to write Adam's moments too, to
      optimizer.safetensors.

  Returns:
    the step exported, int.

  Raises:
    UserError: no such run or checkpoint, or `output` exists and is no export.
  """
  workdir = paths.as_path(workdir)
  config = workdir_lib.load_config(workdir)
  vocab = load_vocabulary(workdir / "vocab.txt")
  bert_config = create_bert_config(config, len(vocab))
  step, params = load_run_params(workdir, bert_config, step)
  max_length = trained_length(config, workdir, step)
  checkpoints.tell_changed_rows(workdir, step)
  extras = _learning_curve(workdir, step)
  if with_optimizer:
    mesh = mesh_lib.create_mesh(default_config().mesh, jax.local_devices())
    adam_state = moments.load_adam_state(
      workdir, config, bert_config, mesh, step
    )
    extras["optimizer.safetensors"] = moments.to_file(adam_state, bert_config)
  hf.save_pretrained(
    output,
    params,
    bert_config,
    vocab,
    lowercase=config.corpus.lowercase,
    strip_accents=config.corpus.get("strip_accents"),
    heads=heads,
    model_card=_model_card(config, workdir, vocab, heads, step, max_length),
    max_length=max_length,
    extra_files=extras,
  )
  return step


def export_on_first_host(workdir, output, heads, step, with_optimizer):
  """Exports with process 0 alone, while the command's others wait; prints.

  Args:
    workdir: a run's folder.
    output: folder to write, or folder of folders with step "all".
    heads: a key of `hf.HEADS`.
    step: int, "best", "all", or None for the newest checkpoint.
    with_optimizer: see `export`.

  Raises:
    UserError: see `export`.
  """
  with joined() as hosts:
    jax.devices()  # found by all processes together, or by none
    if not hosts.is_first:
      return
    if step == "all":
      for step in export_all(workdir, output, heads, with_optimizer):
        print(
          f"export: step {step:,} ({heads}) is in {output}/{step}", flush=True
        )
      return
    step = export(workdir, output, heads, step, with_optimizer)
    print(
      f"export: step {step:,} ({heads}) is in {output}; load it with "
      f"transformers' {hf.HEADS[heads][0]}.from_pretrained"
    )


def export_all(workdir, output, heads="pretraining", with_optimizer=False):
  """Exports every checkpoint of a run to a folder <output>/<step>.

  Args:
    workdir: a run's folder.
    output: folder of folders to write.
    heads: a key of `hf.HEADS`.
    with_optimizer: see `export`.

  Yields:
    the step exported, int, for each of them.

  Raises:
    UserError: see `export`.
  """
  steps = checkpoints.list_steps(workdir)
  if not steps:
    raise UserError(f"{workdir} has no checkpoint; expected some to export")
  for step in steps:
    folder = paths.as_path(output) / str(step)
    yield export(workdir, folder, heads, step, with_optimizer)


def _rows_until(workdir, step):
  """Returns the rows of metrics.jsonl up to a step."""
  return [row for row in metric_log.load_rows(workdir) if row["step"] <= step]


def _learning_curve(workdir, step):
  """Returns learning curve and metrics up to a step: bytes by file name."""
  rows = _rows_until(workdir, step)
  if not rows:
    return {}
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  return {
    "curve.png": learning_curve.plot_curve(rows),
    "metrics.jsonl": lines.encode(),
  }


def _model_card(config, workdir, vocab, heads, step, max_length):
  """Returns the README.md of an export, from the files of the run."""
  corpus = ""
  report = workdir_lib.corpus_dir(config, workdir) / "report.json"
  if not report.exists():
    print(
      f"export: {report} is not there; the card does not tell how much text it "
      "was",
      file=sys.stderr,
    )
  else:
    found = files.load_json(report, "delete it, and the card says less")
    corpus = (
      f": {found['num_documents']:,} documents, {found['num_words']:,} words, "
      f"{found['num_tokens']:,} tokens"
    )
  model, optimizer = config.model, config.optimizer
  sources = config.corpus.source.split(",")
  return _MODEL_CARD.format(
    pipeline_tag="feature-extraction" if heads == "encoder" else "fill-mask",
    heads=heads,
    step=step,
    beginning=_beginning(workdir),
    num_steps=num_train_steps(config),
    source=", ".join(map(without_folder, sources)),
    corpus=corpus,
    vocab_size=len(vocab),
    casing="lower-cased" if config.corpus.lowercase else "cased",
    num_layers=model.num_hidden_layers,
    hidden_size=model.hidden_size,
    num_heads=model.num_attention_heads,
    intermediate_size=model.intermediate_size,
    hidden_act=model.hidden_act,
    max_length=max_length,
    phases=", then ".join(
      f"{config[name].num_steps:,} at length {config[name].max_seq_length} "
      f"(batch {config[name].batch_size})"
      for name in active_phases(config)
    ),
    optimizer=optimizer.name,
    learning_rate=optimizer.learning_rate,
    warmup_steps=optimizer.warmup_steps,
    weight_decay=optimizer.weight_decay,
    held_out=_held_out_table(workdir, step),
    curve=_CURVE if _rows_until(workdir, step) else "",
  )


def _beginning(workdir):
  """Returns the start of the first sentence: how the training began."""
  init = initialization.load_init_record(workdir)
  words = "Pretrained from scratch"
  if init and init.source:
    words = f"Pretraining of `{without_folder(init.source)}` continued"
  if init and init.teacher:
    words += f", with `{without_folder(init.teacher)}` as the teacher,"
  return words


def _held_out_table(workdir, step):
  """Returns the last held-out figures up to a step as a Markdown table."""
  rows = [r for r in _rows_until(workdir, step) if r["split"] == "eval"]
  if not rows:
    return "None were measured."
  row = rows[-1]
  base_rate = max(row["nsp_base_rate"], 1 - row["nsp_base_rate"])
  return (
    f"| at step {row['step']:,} | |\n|---|---|\n"
    f"| masked-LM loss (nats) | {row['mlm_loss']:.4f} |\n"
    f"| masked-LM accuracy | {row['mlm_accuracy']:.4f} |\n"
    f"| next sentence accuracy | {row['nsp_accuracy']:.4f} "
    f"(base rate {base_rate:.4f}) |"
  )
