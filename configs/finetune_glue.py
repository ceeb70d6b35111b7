"""The nine tasks of GLUE (BERT, section 4.1).

  python -m bert_jax.finetune --config=configs/finetune_glue.py:sst2 \\
    --workdir=W --init=H

TASK is cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte or wnli; the data are
TensorFlow Datasets'. With files of your own:

  --config.data.train=train.tsv --config.data.dev=dev.tsv \\
  --config.data.text_a=sentence --config.data.label=label

Hardware: any one accelerator.
Expected on the dev sets, as published for BERT-base: MNLI 84, SST-2 92 to 93,
CoLA 52 to 57, MRPC F1 88 to 91, STS-B 86 to 89, QNLI 91, RTE 66 to 70.
"""

from bert_jax.errors import UserError
from bert_jax.finetune.config import default_config

# Columns of the texts, and the metric that counts.
_TASKS = {
  "cola": ("sentence", "", "matthews_correlation"),
  "sst2": ("sentence", "", "accuracy"),
  "mrpc": ("sentence1", "sentence2", "f1"),
  "stsb": ("sentence1", "sentence2", "spearmanr"),
  "qqp": ("question1", "question2", "f1"),
  "mnli": ("premise", "hypothesis", "accuracy"),
  "qnli": ("question", "sentence", "accuracy"),
  "rte": ("sentence1", "sentence2", "accuracy"),
  "wnli": ("sentence1", "sentence2", "accuracy"),
}


def get_config(task="sst2"):
  if task not in _TASKS:
    raise UserError(f"GLUE has no task {task!r}; expected {', '.join(_TASKS)}")
  config = default_config()
  config.data.text_a, config.data.text_b, config.task.metric = _TASKS[task]
  if task == "stsb":
    config.task.kind = "regression"
  dev = "validation_matched" if task == "mnli" else "validation"
  config.data.train = f"tfds:glue/{task}:train"
  config.data.dev = f"tfds:glue/{task}:{dev}"
  config.optimizer.learning_rate = 3e-5
  return config
