"""A model of two phases pretrained further at a length that is new to it."""

import numpy as np
import pytest
import transformers

from bert_jax.storage import metric_log
from bert_jax.weights.pretrained import load_init
from tests import commands, texts

SETTINGS = (
  "--config=configs/bert_tiny.py",
  "--config.model.dtype=float32",
  "--config.model.hidden_size=32",
  "--config.model.num_hidden_layers=1",
  "--config.model.intermediate_size=64",
  "--config.model.max_position_embeddings=32",
  "--config.corpus.vocab_size=200",
  "--config.corpus.eval_fraction=0.1",
  "--config.phase1.max_seq_length=16",
  "--config.phase1.max_predictions=3",
  "--config.phase1.batch_size=16",
  "--config.phase1.num_steps=40",
  "--config.phase2.max_seq_length=32",
  "--config.phase2.max_predictions=5",
  "--config.phase2.batch_size=16",
  "--config.phase2.num_steps=10",
  "--config.optimizer.warmup_steps=5",
  "--config.optimizer.learning_rate=5e-3",
  "--config.eval.num_batches=2",
  "--config.log.every_steps=1",
)


@pytest.mark.slow
def test_a_third_length_goes_on_from_the_loss_of_the_second(tmp_path):
  """16, 32, then 64 tokens: the workdir of the first two begins the third."""
  text = tmp_path / "text.txt"
  texts.write_text(text, texts.make_documents(60, 12))
  corpus = f"--config.corpus.source={text}"
  first, third = tmp_path / "two_phases", tmp_path / "third"
  commands.output_of("train", f"--workdir={first}", *SETTINGS, corpus)
  printed = commands.output_of(
    "train",
    f"--workdir={third}",
    *SETTINGS,
    corpus,
    f"--init={first}",
    "--extend_positions=64",
    "--config.phase1.max_seq_length=64",
    "--config.phase1.max_predictions=10",
    "--config.phase1.num_steps=3",
    "--config.phase2.num_steps=0",
    "--config.optimizer.warmup_steps=1",
  )
  assert "positions 0 to 31 are copied, 32 to 63 repeat them" in printed
  before = metric_log.load_rows(first)[-1]
  after = metric_log.load_rows(third)[0]
  assert (before["split"], after["split"]) == ("eval", "train")
  vocab_size = len(load_init(first).vocab)
  assert after["mlm_loss"] < before["mlm_loss"] + 0.5 < np.log(vocab_size)
  commands.output_of(
    "export", f"--workdir={third}", f"--output={tmp_path / 'hf'}"
  )
  model = transformers.AutoModel.from_pretrained(tmp_path / "hf")
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
  assert model.config.max_position_embeddings == 64
  assert tokenizer.model_max_length == 64
