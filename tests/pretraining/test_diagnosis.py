"""Held-out figures of parts, against numpy that counts one by one."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from bert_jax.config import default_config
from bert_jax.model.bert import create_params
from bert_jax.pretraining import diagnosis, evaluation, objective
from bert_jax.pretraining import run as run_lib
from bert_jax.storage import metric_log, paths
from tests import golden

MASK_ID, LENGTH = 4, 30
RNG = np.random.default_rng(0)
BANDS = RNG.integers(0, 3, 11).astype(np.int8)


def _inputs(num_rows):
  """Rows of 4 slots to predict; a third of the tokens seen are the labels."""
  ids = RNG.integers(0, 11, (num_rows, LENGTH))
  every = np.tile(np.arange(LENGTH), (num_rows, 1))
  positions = np.sort(RNG.permuted(every, axis=1)[:, :4], axis=1)
  labels = np.take_along_axis(ids, positions, axis=1)
  seen = RNG.choice([-1, MASK_ID, 7], labels.shape)
  np.put_along_axis(ids, positions, np.where(seen < 0, labels, seen), axis=1)
  length = RNG.integers(3, LENGTH + 1, num_rows)
  length[:6] = [10, 11, 20, 21, 3, LENGTH]  # the bands' ends
  return {
    "input_ids": ids,
    "attention_mask": np.arange(LENGTH) < length[:, None],
    "masked_lm_positions": positions,
    "masked_lm_ids": labels,
    "masked_lm_weights": RNG.integers(0, 2, (num_rows, 4)).astype(np.float32),
    "next_sentence_labels": RNG.integers(0, 2, num_rows),
  }


def _count(inputs, mlm_logits, nsp_logits):
  """Yields (figure without its part, part, value) of each prediction."""
  for row, length in enumerate(inputs["attention_mask"].sum(1)):
    label = inputs["next_sentence_labels"][row]
    part = "short" if length <= 10 else "medium" if length <= 20 else "long"
    yield "nsp_accuracy", part, np.argmax(nsp_logits[row]) == label
    yield "nsp_base_rate", part, label == 1
    for slot, position in enumerate(inputs["masked_lm_positions"][row]):
      if not inputs["masked_lm_weights"][row, slot]:
        continue
      token = inputs["masked_lm_ids"][row, slot]
      seen = inputs["input_ids"][row, position]
      kind = "kept" if seen == token else "random"
      kind = "masked" if seen == MASK_ID else kind
      frequency = ("frequent", "medium", "rare")[BANDS[token]]
      scores = mlm_logits[row, slot].astype(np.float64)
      loss = np.log(np.exp(scores).sum()) - scores[token]
      for part in (kind, frequency):
        yield "mlm_loss", part, loss
        yield "mlm_accuracy", part, np.argmax(scores) == token


def test_sums_of_parts_are_those_of_a_count_one_by_one():
  inputs = _inputs(40)
  mlm_logits = RNG.normal(0, 2, (40, 4, 11)).astype(np.float32)
  nsp_logits = RNG.normal(0, 2, (40, 2)).astype(np.float32)
  found = diagnosis.diagnostic_sums(
    mlm_logits, nsp_logits, inputs, BANDS, MASK_ID
  )
  expected = {}
  for figure, part, value in _count(inputs, mlm_logits, nsp_logits):
    expected.setdefault(f"{figure}_{part}", []).append(value)
  assert found.keys() == expected.keys()
  for name, values in expected.items():
    np.testing.assert_allclose(
      found[name], (np.sum(values), len(values)), rtol=1e-5, err_msg=name
    )


def test_a_band_is_a_third_of_the_text():
  """Where the counts part evenly; a token that never occurs is rare."""
  counts = np.array([0, 5, 30, 10, 20, 10, 15])
  assert diagnosis.part_by_frequency(counts).tolist() == [2, 2, 0, 2, 1, 2, 1]


def test_bands_of_a_large_corpus_are_those_of_a_part_spread_over_it(
  monkeypatch,
):
  corpus = golden.make_corpus()
  whole = diagnosis.create_frequency_bands(corpus, corpus.documents)
  ids = corpus.tokens.astype(np.int64)
  counts = np.bincount(ids, minlength=len(corpus.vocab))
  assert (whole == diagnosis.part_by_frequency(counts)).all()
  monkeypatch.setattr(diagnosis, "_COUNTED_TOKENS", int(0.6 * len(ids)))
  monkeypatch.setattr(diagnosis, "_NUM_RUNS", 10)
  part = diagnosis.create_frequency_bands(corpus, corpus.documents)
  chosen = np.arange(40) % 4 <= 2  # of each run of four documents
  kept = [
    ids[d["start"] : d["start"] + d["num_tokens"]]
    for d in corpus.documents[chosen]
  ]
  counts = np.bincount(np.concatenate(kept), minlength=len(corpus.vocab))
  assert (part == diagnosis.part_by_frequency(counts)).all()


@pytest.fixture(scope="module", name="run")
def _run():
  """A run on one device and the golden corpus, some documents held out."""
  config = default_config()
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
  corpus = golden.make_corpus()
  corpus.documents["hash"] = RNG.integers(0, 2**63, 40)
  corpus.manifest["entries"] = [{"spec": "a.txt", "language": "en"}]
  config.corpus.eval_fraction = 0.25
  run = run_lib.create_run(config, corpus)
  mesh = run_lib.create_mesh(config, jax.devices()[:1])
  return dataclasses.replace(run, mesh=mesh)


@pytest.mark.slow
def test_parts_make_up_the_whole_and_are_the_same_on_any_mesh(run):
  """One device and sixteen, batches of 16 and of 32."""
  create = jax.jit(create_params, static_argnums=0)
  params = create(run.bert_config, jax.random.key(0))
  row = evaluation.make_evaluate(run, "phase1", params)(params)
  config = run.config.copy_and_resolve_references()
  config.phase1.batch_size, config.eval.num_batches = 32, 1
  many = run_lib.create_run(config, run.corpus)
  other = evaluation.make_evaluate(many, "phase1", params)(params)
  assert many.mesh.size == 16
  assert row.keys() == other.keys()
  for name, value in row.items():
    assert other[name] == pytest.approx(value, rel=1e-5), name
  for names in (diagnosis.SEEN, diagnosis.FREQUENCIES):
    losses = [row[f"mlm_loss_{name}"] for name in names]
    assert min(losses) < row["mlm_loss"] < max(losses)
  assert row["loss"] == pytest.approx(row["mlm_loss"] + row["nsp_loss"])
  expected = math.exp(row["mlm_loss_masked"])
  assert row["mlm_perplexity_masked"] == pytest.approx(expected)


def test_a_part_without_predictions_has_no_figure(tmp_path):
  """Null in JSON, and no zero that could be taken for a perfect loss."""
  sums = {
    "mlm_loss": (6.0, 4.0),
    "nsp_loss": (1.0, 2.0),
    "mlm_loss_masked": (0.0, 0.0),
    "mlm_loss_random": (6.0, 4.0),
  }
  row = evaluation._figures(sums)
  assert row["mlm_loss_masked"] is row["mlm_perplexity_masked"] is None
  assert row["mlm_loss_random"] == 1.5
  assert row["loss"] == 1.5 + 0.5
  writer = metric_log.MetricWriter(paths.as_path(tmp_path), 0)
  writer.write({"step": 1, "split": "eval", "phase": "phase1"} | row)
  writer.close()
  (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
  saved = json.loads(line)
  assert saved.keys() == {*metric_log.FIELDS, *row}
  assert saved["mlm_loss_random"] == 1.5 and saved["mlm_loss_masked"] is None


def test_a_train_step_does_not_compute_parts(run):
  state = run_lib.abstract_sharded_state(run)
  step = objective.make_train_step(run, "phase1", state)
  _, metrics = step.eval_shape(state, run_lib.abstract_batch(run, "phase1"))
  assert "mlm_accuracy" in metrics
  parts = diagnosis.SEEN + diagnosis.FREQUENCIES + diagnosis.LENGTHS
  assert not [name for name in metrics if name.endswith(parts)]
