"""Vocabularies whose ids need four bytes: from text to step, export, import."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import transformers

from bert_jax.data.corpus import open_corpus
from bert_jax.data.examples import Examples
from bert_jax.data.tokenization import SPECIAL_TOKENS
from bert_jax.pretraining import exporting
from bert_jax.storage import metric_log
from tests.weights import tiny_bert

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = (
  "--config=configs/bert_base.py",
  "--config.model.dtype=float32",
  "--config.corpus.eval_fraction=0.1",
  "--config.phase1.num_steps=1",
  "--config.phase1.max_seq_length=32",
  "--config.phase1.max_predictions=5",
  "--config.phase1.batch_size=8",
  "--config.phase2.num_steps=0",
  "--config.optimizer.warmup_steps=0",
  "--config.eval.num_batches=1",
)
SIZES = (
  "--config.model.hidden_size=24",
  "--config.model.num_hidden_layers=1",
  "--config.model.num_attention_heads=3",
  "--config.model.intermediate_size=40",
  "--config.model.max_position_embeddings=64",
)
pytestmark = pytest.mark.slow


def _write_text(path, vocab):
  """Writes documents of words all over the vocabulary."""
  words = [t for t in vocab if t.isalnum() and len(t) > 1]
  rng = np.random.default_rng(0)
  sentences = [
    " ".join(rng.choice(words, 9)).capitalize() + " ." for _ in range(600)
  ]
  documents = [" ".join(sentences[i : i + 10]) for i in range(0, 600, 10)]
  path.write_text("\n\n".join(documents) + "\n")


def _train(workdir, text, *arguments):
  subprocess.run(
    [
      *(sys.executable, "-m", "bert_jax.train", f"--workdir={workdir}"),
      *SETTINGS,
      f"--config.corpus.source={text}",
      *arguments,
    ],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    check=True,
  )
  train, evaluated = metric_log.load_rows(workdir)
  assert np.isfinite([train["loss"], evaluated["loss"]]).all()


def _check_batch(corpus):
  """Batches hold ids on both sides of 65,536, in four bytes."""
  batch = Examples(corpus, corpus.documents, 32, 0, 0).batch(np.arange(64))
  ids = batch["input_ids"]
  assert ids.dtype == np.uint32
  assert (ids > 65_535).any() and ((ids > 4) & (ids < 65_536)).any()
  assert ids.max() < len(corpus.vocab)


def test_a_vocabulary_of_70_000_is_trained_and_exported(tmp_path):
  vocab = [*SPECIAL_TOKENS, ".", *(f"w{i}" for i in range(69_994))]
  vocab_file, workdir = tmp_path / "vocab.txt", tmp_path / "run"
  vocab_file.write_text("\n".join(vocab) + "\n")
  _write_text(tmp_path / "a.txt", vocab)
  file = f"--config.corpus.vocab_file={vocab_file}"
  _train(workdir, tmp_path / "a.txt", file, *SIZES)
  corpus = open_corpus(workdir / "corpus")
  assert corpus.vocab == vocab
  _check_batch(corpus)
  exporting.export(workdir, tmp_path / "hf")
  model = transformers.BertForPreTraining.from_pretrained(tmp_path / "hf")
  assert model.get_input_embeddings().weight.shape == (70_000, 24)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
  document = corpus.documents[0]
  first = (tmp_path / "a.txt").read_text().split("\n\n")[0]
  assert tokenizer(first, add_special_tokens=False)["input_ids"] == list(
    corpus.tokens[: document["num_tokens"]]
  )


def test_a_model_of_119_547_pieces_is_continued(tmp_path):
  """As many as multilingual BERT has; half of the text past two bytes."""
  words = [f"w{i}" for i in range(119_547 - len(tiny_bert.make_vocab()))]
  vocab = tiny_bert.make_vocab(words)
  (tmp_path / "model").mkdir()
  tiny_bert.save(tmp_path / "model", transformers.BertForPreTraining, vocab)
  _write_text(tmp_path / "a.txt", vocab)
  workdir = tmp_path / "run"
  _train(workdir, tmp_path / "a.txt", f"--init={tmp_path / 'model'}")
  corpus = open_corpus(workdir / "corpus")
  assert corpus.vocab == vocab and len(vocab) == 119_547
  _check_batch(corpus)
