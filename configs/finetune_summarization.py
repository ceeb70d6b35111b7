"""Extractive summaries: the best sentences of a document (BERTSUM, Liu 2019).

  python -m bert_jax.finetune --config=configs/finetune_summarization.py \\
    --workdir=W --init=H --config.data.train=train.jsonl \\
    --config.data.dev=dev.jsonl

The files have a document in column article and its summary in highlights, each
a text or a list of sentences. Without files: CNN/DailyMail of TensorFlow
Datasets.

Hardware: any one accelerator.
Expected on CNN/DailyMail, as published for BERT-base with a linear layer: ROUGE
43.2 / 20.2 / 39.6; the first three sentences 40.4 / 17.6 / 36.7.
"""

from bert_jax.finetune.config import default_config


def get_config():
  config = default_config()
  config.task.kind = "summarization"
  config.data.train = "tfds:cnn_dailymail:train"
  config.data.dev = "tfds:cnn_dailymail:validation"
  config.data.text_a = "article"
  config.data.label = "highlights"
  config.data.max_seq_length = 512
  config.train.num_epochs = 2.0
  return config
