"""What `prepare --show` prints is what the step makes of the first batch."""

import re

import jax
import pytest

from bert_jax.config import default_config
from bert_jax.data import preparation
from bert_jax.data.corpus import open_corpus
from bert_jax.pretraining import run as run_lib
from bert_jax.pretraining import show
from bert_jax.pretraining.objective import create_objective
from tests import texts


@pytest.fixture(name="config")
def _config(tmp_path):
  texts.write_text(tmp_path / "a.txt", texts.make_documents(80, 12))
  config = default_config()
  config.corpus.source = str(tmp_path / "a.txt")
  config.corpus.vocab_size = 200
  config.phase1.update(max_seq_length=32, batch_size=16, max_predictions=5)
  config.phase2.update(max_seq_length=64, batch_size=16, max_predictions=10)
  return config


def test_examples_are_those_of_the_first_step(tmp_path, config):
  """Tokens, label and predictions of each phase, as the train step has them."""
  directory = preparation.prepare(config, tmp_path / "w")
  corpus = open_corpus(directory)
  found = show.describe_examples(config, tmp_path / "w", 3)
  assert len(found) == 6
  run = run_lib.create_run(config, corpus)
  steps = {"phase1": 0, "phase2": config.phase1.num_steps}
  shown = iter(found)
  for name, step in steps.items():
    batch = run_lib.training_examples(run, name).batch(range(16))
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    inputs = create_objective(
      config, config[name], run.bert_config, run.masking_vocab
    ).make_inputs(jax.random.split(key)[0], batch)
    for row in range(3):
      lines = next(shown).split("\n")
      label = ["IsNext", "NotNext"][batch["next_sentence_labels"][row]]
      assert lines[0].startswith(f"{name} example {row}: {label}, ")
      ids = inputs["input_ids"][row, : batch["length"][row]]
      text = show.join_pieces([corpus.vocab[i] for i in ids])
      assert f"{lines[2].strip()} {lines[4].strip()}" == text
      predicted = [
        f"{position} {corpus.vocab[token]!r}"
        for position, token, weight in zip(
          inputs["masked_lm_positions"][row],
          inputs["masked_lm_ids"][row],
          inputs["masked_lm_weights"][row],
          strict=True,
        )
        if weight
      ]
      assert re.findall(r"(\d+ '.*?') as ", lines[5]) == predicted
