"""Going on with a pretrained model: weights, words, optimizer, restarts."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
import transformers
from etils import epath

from bert_jax.config import default_config
from bert_jax.data.preparation import prepare
from bert_jax.data.tokenization import (
  SPECIAL_TOKENS,
  WordRules,
  create_tokenizer,
)
from bert_jax.data.vocabulary import (
  count_words,
  extend_vocabulary,
  load_vocabulary,
  normalize_counts,
  split_piece,
)
from bert_jax.distributed.hosts import Hosts
from bert_jax.errors import UserError
from bert_jax.model.bert import BertForPreTraining
from bert_jax.model.bert_config import BertConfig
from bert_jax.pretraining import exporting, extension, initialization
from bert_jax.pretraining.initialization import Init
from bert_jax.storage import metric_log
from bert_jax.storage.workdir import load_config
from bert_jax.weights.pretrained import Pretrained, load_init
from tests import texts

ROOT = pathlib.Path(__file__).parents[2]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
VOCAB = [
  *SPECIAL_TOKENS,
  *(".", "##ss", "the", "of", "river", "far", "##mer", "moves"),
  *LETTERS,
  *(f"##{letter}" for letter in LETTERS),
]
NUM_NEW = 60  # past the padding of 128 rows
NUM_POSITIONS = 72  # of 48


SETTINGS = (
  "--config=configs/bert_base.py",
  "--config.model.hidden_dropout_prob=0.0",
  "--config.model.attention_probs_dropout_prob=0.0",
  "--config.model.dtype=float32",
  "--config.corpus.eval_fraction=0.1",
  "--config.phase1.max_seq_length=32",
  "--config.phase1.max_predictions=5",
  "--config.phase1.batch_size=16",
  "--config.phase2.num_steps=0",
  "--config.optimizer.warmup_steps=2",
  "--config.optimizer.learning_rate=2e-3",
  "--config.eval.num_batches=2",
  "--config.log.every_steps=1",
)
SIZES = (
  "--config.model.hidden_size=32",
  "--config.model.num_hidden_layers=1",
  "--config.model.num_attention_heads=2",
  "--config.model.intermediate_size=64",
  "--config.model.hidden_act=gelu_new",
  "--config.model.max_position_embeddings=48",
)


def command(module, workdir, *arguments):
  name = f"bert_jax.{module}"
  return [sys.executable, "-m", name, f"--workdir={workdir}", *arguments]


def environment(workdir):
  """One device; compiled programs are kept beside the workdirs."""
  return os.environ | {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
    "JAX_COMPILATION_CACHE_DIR": str(workdir.parents[1] / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }


def run(module, workdir, *arguments):
  """Runs a command to its end; returns what it printed."""
  done = subprocess.run(
    command(module, workdir, *arguments),
    cwd=ROOT,
    env=environment(workdir),
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def train(workdir, text, num_steps, *arguments):
  return run(
    "train",
    workdir,
    *SETTINGS,
    f"--config.corpus.source={text}",
    f"--config.phase1.num_steps={num_steps}",
    *arguments,
  )


def read_files(folder):
  """Returns the content and the time of every file."""
  files = [path for path in folder.rglob("*") if path.is_file()]
  return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def create_config(text):
  """Returns settings that differ in every size from the source's."""
  config = default_config()
  config.corpus.source = str(text)
  config.phase1.batch_size = 16
  config.phase2.num_steps = 0
  return config


@pytest.fixture(scope="module", name="text")
def _text(tmp_path_factory):
  path = tmp_path_factory.mktemp("text") / "text.txt"
  texts.write_text(path, texts.make_documents(60, 12))
  return path


@pytest.fixture(scope="module", name="source")
def _source(tmp_path_factory, text):
  """A small run of ours, at step 8."""
  root = tmp_path_factory.mktemp("source")
  (root / "vocab.txt").write_text("".join(f"{t}\n" for t in VOCAB))
  vocab = f"--config.corpus.vocab_file={root / 'vocab.txt'}"
  train(root / "run", text, 8, *SIZES, vocab)
  return root / "run"


@pytest.fixture(scope="module", name="continued")
def _continued(tmp_path_factory, text, source):
  """The run continued for three steps with the default config's sizes."""
  workdir = tmp_path_factory.mktemp("continued") / "run"
  train(workdir, text, 3, f"--init={source}")
  return workdir


@pytest.fixture(scope="module", name="extended")
def _extended(tmp_path_factory, text, source):
  """The same with new pieces and positions, at a length only these have."""
  workdir = tmp_path_factory.mktemp("extended") / "run"
  train(
    workdir,
    text,
    3,
    f"--init={source}",
    f"--extend_vocab={NUM_NEW}",
    f"--extend_positions={NUM_POSITIONS}",
    "--config.phase1.max_seq_length=64",
    "--config.phase1.max_predictions=10",
  )
  return workdir


@pytest.mark.slow
def test_continuing_starts_at_the_weights_and_loss_of_the_model(
  source, continued
):
  """Also the sizes: the config that was asked for is BERT-base."""
  jax.tree.map(
    np.testing.assert_array_equal,
    load_init(continued, step=0).params,
    load_init(source).params,
  )
  before = metric_log.load_rows(source)[-1]
  assert before["split"] == "eval"
  after = json.loads(run("evaluate", continued, "--step=0"))
  for key in ("mlm_loss", "nsp_loss", "mlm_accuracy"):
    assert after[key] == before[key]
  losses = [
    row["mlm_loss"]
    for row in metric_log.load_rows(continued)
    if row["split"] == "train"
  ]
  assert losses[0] == pytest.approx(before["mlm_loss"], abs=0.5)
  assert losses[0] < np.log(len(VOCAB)) - 0.3


def test_the_vocabulary_comes_along(source, continued):
  for name in ("vocab.txt", "corpus/vocab.txt", initialization.VOCAB_FILE):
    assert load_vocabulary(continued / name) == VOCAB
  assert np.array_equal(
    np.fromfile(source / "corpus" / "tokens-00000.bin", np.uint16),
    np.fromfile(continued / "corpus" / "tokens-00000.bin", np.uint16),
  )


def test_another_init_or_none_before_is_refused(text, source, continued):
  config = create_config(text)
  with pytest.raises(UserError, match=r"was begun with --init=.*source"):
    initialization.begin(
      config, epath.Path(continued), Init("/elsewhere"), Hosts()
    )
  with pytest.raises(UserError, match="was begun with no --init"):
    initialization.begin(
      config, epath.Path(source), Init(str(continued)), Hosts()
    )


def test_a_mistake_before_the_first_step_can_be_mended(text, source, tmp_path):
  workdir = epath.Path(tmp_path / "run")
  mistaken = Init(str(source), 40_000)
  config, init = initialization.begin(
    create_config(text), workdir, mistaken, Hosts()
  )
  with pytest.raises(UserError, match=r"--extend_vocab=40000.*at most that"):
    prepare(config, workdir, init.extend_vocab)
  mended = Init(str(source), 3)
  config, init = initialization.begin(
    create_config(text), workdir, mended, Hosts()
  )
  assert init == mended
  prepare(config, workdir, init.extend_vocab)
  assert len(load_vocabulary(workdir / "vocab.txt")) == len(VOCAB) + 3


def test_the_model_decides_sizes_words_and_casing(text, source, tmp_path):
  """And a vocabulary that the config names besides is a mistake."""
  config = create_config(text)
  config.corpus.vocab_file = "mine.txt"
  workdir = epath.Path(tmp_path / "run")
  with pytest.raises(UserError, match=r"vocab_file is 'mine\.txt', but --init"):
    initialization.begin(config, workdir, Init(str(source)), Hosts())
  config.corpus.vocab_file = ""
  settled, _ = initialization.begin(config, workdir, Init(str(source)), Hosts())
  theirs = load_config(source).model
  for key in initialization.ARCHITECTURE:
    assert settled.model[key] == theirs[key]
  assert settled.model.dtype == config.model.dtype
  assert load_vocabulary(settled.corpus.vocab_file) == VOCAB
  again, kept = initialization.begin(config, workdir, None, Hosts())
  assert again.to_dict() == settled.to_dict()
  assert kept == Init(str(source))
  assert config.model.hidden_size == 768  # the caller's is left alone


def adam_state(workdir, step):
  """Returns Adam's count and moments as numpy, read by orbax alone."""
  path = epath.Path(workdir) / "checkpoints" / str(step) / "state"
  with ocp.PyTreeCheckpointer() as reader:
    as_numpy = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
      reader.metadata(path).item_metadata.tree,
    )
    state = reader.restore(path, restore_args=as_numpy)
  (adam,) = (s for s in state["opt_state"] if s and "mu" in s)
  schedule = state["opt_state"][-1]
  return adam, int(schedule["count"])


@pytest.mark.slow
def test_moments_are_reset_or_kept_as_asked(text, source, continued, tmp_path):
  """The source is read, and not a byte of it written."""
  before = read_files(source)
  old, _ = adam_state(source, 8)
  fresh, count = adam_state(continued, 0)
  assert int(fresh["count"]) == count == 0
  assert not any(np.any(x) for x in jax.tree.leaves(fresh["nu"]))
  workdir = tmp_path / "run"
  train(workdir, text, 3, f"--init={source}", "--init_optimizer=keep")
  kept, count = adam_state(workdir, 0)
  assert int(kept["count"]) == int(old["count"]) == 8
  assert count == 0  # the schedule begins anew
  jax.tree.map(np.testing.assert_array_equal, kept, old)
  assert any(np.any(x) for x in jax.tree.leaves(kept["mu"]))
  assert read_files(source) == before


def test_moments_can_only_be_kept_from_a_run(text, source, tmp_path):
  exporting.export(source, tmp_path / "hf")
  with pytest.raises(UserError, match="has no optimizer state"):
    initialization.begin(
      create_config(text),
      epath.Path(tmp_path / "run"),
      Init(str(tmp_path / "hf"), optimizer="keep"),
      Hosts(),
    )


def test_new_rows_are_the_means_of_their_old_pieces(source, extended):
  """And every old row is as it was."""
  old, new = load_init(source), load_init(extended, step=0)
  assert new.vocab[: len(VOCAB)] == VOCAB
  assert len(set(new.vocab)) == len(new.vocab) == len(VOCAB) + NUM_NEW
  tables = [
    (
      model.params["bert"]["embeddings"]["word_embeddings"],
      model.params["cls"]["predictions"]["bias"],
    )
    for model in (old, new)
  ]
  for old_table, new_table in zip(*tables, strict=True):
    np.testing.assert_array_equal(
      new_table[: len(VOCAB)], old_table[: len(VOCAB)]
    )
    for row in range(len(VOCAB), len(new.vocab)):
      pieces = spell(new.vocab[row])
      assert len(pieces) > 1
      expected = np.mean([old_table[VOCAB.index(p)] for p in pieces], axis=0)
      np.testing.assert_array_equal(new_table[row], expected)
    assert not np.any(new_table[len(new.vocab) :])
  body = [m.params["bert"]["encoder"] for m in (old, new)]
  jax.tree.map(np.testing.assert_array_equal, *body)


def test_old_positions_are_copied_and_new_ones_interpolated(source, extended):
  """By numpy's own interpolation, column by column."""
  old, new = (
    load_init(run, step=step).params["bert"]["embeddings"][
      "position_embeddings"
    ]
    for run, step in ((source, None), (extended, 0))
  )
  assert new.shape == (NUM_POSITIONS, 32)
  np.testing.assert_array_equal(new[:48], old)
  places = np.linspace(0, 47, NUM_POSITIONS - 48)
  for column in range(32):
    expected = np.interp(places, np.arange(48), old[:, column])
    np.testing.assert_allclose(new[48:, column], expected, atol=1e-6)


def spell(piece):
  """Spells a piece with the old vocabulary, by the tokenizers library.

  What continues a word is read as its end, behind a letter.
  """
  tokenizer = create_tokenizer(VOCAB, True)
  word = piece.replace("##", "q")
  tokens = tokenizer.encode(word, add_special_tokens=False).tokens
  return tokens[piece.startswith("##") :]


def test_a_new_logit_is_the_mean_of_the_old_ones(source, extended):
  ids = np.array([[2, 7, 9, 4, 3]])
  logits = [
    BertForPreTraining(model.bert_config).apply(
      {"params": model.params},
      ids,
      np.zeros_like(ids),
      np.ones_like(ids) == 1,
      np.array([[3]]),
      deterministic=True,
    )[0][0, 0]
    for model in (load_init(source), load_init(extended, step=0))
  ]
  vocab = load_vocabulary(extended / "vocab.txt")
  for row in range(len(VOCAB), len(vocab)):
    old = [logits[0][VOCAB.index(p)] for p in spell(vocab[row])]
    np.testing.assert_allclose(logits[1][row], np.mean(old), atol=1e-5)


def test_texts_are_written_with_the_new_pieces(source, extended):
  counts = [
    np.fromfile(run / "corpus" / "tokens-00000.bin", np.uint16)
    for run in (source, extended)
  ]
  assert len(counts[1]) < 0.7 * len(counts[0])
  assert counts[1].max() >= len(VOCAB)


def test_extended_export_loads_in_transformers(extended, tmp_path):
  exporting.export(extended, tmp_path / "hf")
  model = transformers.BertForPreTraining.from_pretrained(tmp_path / "hf")
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
  text = "The captain remembers the river. " * 20
  inputs = tokenizer(
    text, return_tensors="pt", truncation=True, max_length=NUM_POSITIONS
  )
  assert int(inputs["input_ids"].max()) >= len(VOCAB)
  assert inputs["input_ids"].shape == (1, NUM_POSITIONS)
  assert tokenizer.model_max_length == 64  # the longest length trained
  assert load_init(extended).max_length == 64
  with torch.no_grad():
    theirs = model.eval()(**inputs).prediction_logits[0].numpy()
  ours = load_init(extended)
  ids = inputs["input_ids"].numpy()
  every = np.arange(ids.shape[1])[None]
  logits, _ = BertForPreTraining(ours.bert_config).apply(
    {"params": ours.params},
    ids,
    np.zeros_like(ids),
    np.ones_like(ids) == 1,
    every,
    deterministic=True,
  )
  assert theirs.shape == (ids.shape[1], len(VOCAB) + NUM_NEW)
  np.testing.assert_allclose(logits[0, :, : theirs.shape[1]], theirs, atol=1e-4)
  card = (tmp_path / "hf" / "README.md").read_text()
  assert "Pretraining of `run` continued with bert_jax" in card
  assert "from scratch" not in card


def test_pieces_are_new_frequent_and_spelled_longest_first():
  words = normalize_counts(
    count_words(texts.make_documents(60, 12) + ["λόγος λόγος"] * 99),
    WordRules(lowercase=True),
  )
  vocab = extend_vocabulary(VOCAB, words, 20)
  assert vocab[: len(VOCAB)] == VOCAB
  new = vocab[len(VOCAB) :]
  assert len(set(vocab)) == len(vocab)
  assert not any("λ" in piece for piece in new)  # nothing spells it
  uses = [
    sum(n for w, n in words.items() if p.removeprefix("##") in w) for p in new
  ]
  assert np.mean(uses[:5]) > np.mean(uses[-5:])
  ids = {token: i for i, token in enumerate(VOCAB)}
  for piece in new:
    assert split_piece(piece, ids) == spell(piece)
  assert split_piece("λόγος", ids) is None
  with pytest.raises(UserError, match="yields only"):
    extend_vocabulary(VOCAB, words, 5_000)


def test_a_model_without_heads_is_extended_too():
  rows = np.arange(2 * 128, dtype=np.float32).reshape(128, 2)
  body = {"embeddings": {"word_embeddings": rows}}
  config = BertConfig(vocab_size=len(VOCAB), hidden_size=2)
  pretrained = Pretrained("x", config, {"bert": body}, VOCAB, True, 48)
  extended = extension.extend_vocab(pretrained, [*VOCAB, "farmers"])
  table = extended.params["bert"]["embeddings"]["word_embeddings"]
  pieces = [VOCAB.index(p) for p in ("far", "##mer", "##s")]
  np.testing.assert_array_equal(table[len(VOCAB)], rows[pieces].mean(0))
  assert pretrained.params["bert"] is body  # the source is left alone
  assert body["embeddings"]["word_embeddings"] is rows
  with pytest.raises(UserError, match="has changed"):
    extension.extend_vocab(pretrained, VOCAB[::-1])


@pytest.mark.slow
def test_a_killed_run_goes_on_without_its_source(text, source, tmp_path):
  """Killed without warning; neither --init nor the source is there then."""
  copy = tmp_path / "source"
  shutil.copytree(source, copy)
  workdir = tmp_path / "run"
  settings = (*SETTINGS, f"--config.corpus.source={text}")
  first = subprocess.Popen(
    command(
      "train",
      workdir,
      *settings,
      "--config.phase1.num_steps=60",
      f"--init={copy}",
      "--extend_vocab=10",
    ),
    cwd=ROOT,
    env=environment(workdir),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  deadline = time.monotonic() + 240
  while not (workdir / "checkpoints" / "0").exists():
    assert time.monotonic() < deadline and first.poll() is None, first.stdout
    time.sleep(0.02)
  first.send_signal(signal.SIGKILL)
  assert "init: 10 new pieces" in first.communicate()[0]
  initial = load_init(workdir, step=0)
  shutil.rmtree(copy)
  printed = train(workdir, text, 3)
  assert "train: continuing after step 0" in printed
  assert "init:" not in printed
  rows = metric_log.load_rows(workdir)
  assert rows[0]["mlm_loss"] < np.log(len(initial.vocab))
  record = json.loads((workdir / initialization.RECORD_FILE).read_text())
  assert record["init"]["extend_vocab"] == 10
