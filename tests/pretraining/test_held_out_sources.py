"""Held-out figures of each entry of `corpus.source`, beside those of all."""

import jax
import pytest

from bert_jax.config import default_config
from bert_jax.data import preparation
from bert_jax.data.corpus import open_corpus
from bert_jax.model.bert import create_params
from bert_jax.pretraining import evaluation
from bert_jax.pretraining import run as run_lib
from tests import texts


@pytest.fixture(name="run")
def _run(tmp_path):
  """Two sources of text, and a third of two documents."""
  for name, count in (("a", 60), ("b", 40), ("c", 2)):
    documents = texts.make_documents(count, 12, seed=ord(name))
    texts.write_text(tmp_path / f"{name}.txt", documents)
  config = default_config()
  config.corpus.source = ",".join(f"{tmp_path}/{name}.txt" for name in "abc")
  config.corpus.vocab_size = 200
  config.corpus.eval_fraction = 0.2
  config.model.update(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    dtype="float32",
  )
  config.phase1.update(max_seq_length=32, batch_size=16, max_predictions=5)
  config.phase2.num_steps = 0
  config.eval.num_batches = 2
  config.mesh.data = -1
  directory = preparation.prepare(config, tmp_path / "w")
  return run_lib.create_run(config, open_corpus(directory))


def test_examples_of_a_source_are_of_its_held_out_documents(run):
  found = run_lib.held_out_sources(run)
  assert [spec[-5:] for spec in found.values()][:2] == ["a.txt", "b.txt"]
  everything = run_lib.held_out_examples(run, "phase1").documents
  for number in found:
    documents = run_lib.held_out_examples(run, "phase1", number).documents
    assert len(documents) > 1
    assert (documents["source"] == number).all()
    assert len(documents) == (everything["source"] == number).sum()


@pytest.mark.slow
def test_a_source_has_figures_of_its_own(run):
  params = create_params(run.bert_config, jax.random.key(0))
  figures = [
    evaluation.make_evaluate(run, "phase1", params, source)(params)
    for source in (None, 1)
  ]
  losses = {round(row["loss"], 6) for row in figures}
  assert len(losses) == 2
  assert all(row.keys() == figures[0].keys() for row in figures)
