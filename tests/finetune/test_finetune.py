"""The fine-tuning command as users meet it: learning, kills, exports."""

import json
import signal
import time

import pytest
import safetensors.numpy
import torch
import transformers

from bert_jax.storage import metric_log
from tests import commands
from tests.weights import tiny_bert

WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord")
PAIRS = [(a, b) for a in WORDS for b in WORDS if a != b]
TEXTS = [
  f"{a} {b}" + " ." * 16 * (i % 3 == 0) for i, (a, b) in enumerate(PAIRS)
]
SETTINGS = (
  "--config.model.dtype=float32",
  "--config.data.max_seq_length=32",
  "--config.optimizer.learning_rate=3e-3",
  "--config.log.every_steps=1",
  "--config.checkpoint.every_steps=7",
)
pytestmark = pytest.mark.slow


def _finetune(folder, config, *arguments):
  return commands.output_of(
    "finetune",
    f"--config=configs/finetune_{config}.py",
    f"--init={folder / 'init'}",
    *SETTINGS,
    *arguments,
  )


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
  """A random BERT and the data of all tests."""
  folder = tmp_path_factory.mktemp("finetune")
  tiny_bert.save(
    folder / "init",
    transformers.BertModel,
    tiny_bert.make_vocab(WORDS),
    hidden_size=32,
    num_attention_heads=2,
    intermediate_size=64,
  )
  # Which of two words comes first: no count of words can tell.
  # A third of them are longer, so that batches have two lengths.
  rows = [
    f"{text}\t{'rising' if a < b else 'falling'}"
    for text, (a, b) in zip(TEXTS, PAIRS, strict=True)
  ]
  table = "\n".join(["sentence\tlabel", *rows]) + "\n"
  (folder / "order.tsv").write_text(table)
  # A word is a place after one that comes before it in the alphabet.
  sentences = []
  for a, b in PAIRS:
    tags = ["O", "B-LOC" if a < b else "O"]
    sentences += [
      f"{word} {tag}" for word, tag in zip((a, b), tags, strict=True)
    ]
    sentences.append("")
  (folder / "tags.conll").write_text("\n".join(sentences * 2))
  questions = [
    {
      "context": f"{a}, {i} ({b})",
      "qas": [
        {
          "id": f"{a} {b}",
          "question": "Which number?",
          "answers": [{"text": str(i), "answer_start": len(a) + 2}],
        }
      ],
    }
    for i, (a, b) in enumerate(PAIRS)
  ]
  squad = {"version": "1.1", "data": [{"paragraphs": questions}]}
  (folder / "squad.json").write_text(json.dumps(squad))
  return folder


def _data(folder, name):
  return (
    f"--config.data.train={folder / name}",
    f"--config.data.dev={folder / name}",
  )


@pytest.fixture(scope="module", name="order")
def _order(folder):
  """A run that learns the order of words, not disturbed."""
  _finetune(
    folder,
    "classification",
    f"--workdir={folder / 'order'}",
    f"--output={folder / 'order_export'}",
    *_data(folder, "order.tsv"),
    "--config.train.num_epochs=300",
    "--config.eval.every_steps=50",
  )
  return folder / "order"


def _rows(workdir, split):
  fields = ("loss", "accuracy", "grad_norm")
  return {
    row["step"]: [row[field] for field in fields]
    for row in metric_log.load_rows(workdir)
    if row["split"] == split
  }


def _predictions(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_learns_what_no_bag_of_words_can_tell(order):
  losses = [values[0] for values in _rows(order, "train").values()]
  assert losses[0] > 0.5
  best = max(values[1] for values in _rows(order, "eval").values())
  assert best == 1.0
  assert all(
    p["label"] == p["gold"] for p in _predictions(order / "predictions.jsonl")
  )


def test_transformers_pipeline_gives_our_predictions(order):
  pipeline = transformers.pipeline(
    "text-classification", str(order.parent / "order_export"), device="cpu"
  )
  theirs = pipeline(TEXTS, top_k=None)
  for ours, scores in zip(
    _predictions(order / "predictions.jsonl"), theirs, strict=True
  ):
    scores = {s["label"]: s["score"] for s in scores}
    assert set(scores) == {"rising", "falling"}
    assert ours["probabilities"] == pytest.approx(scores, abs=1e-5)


def test_the_prediction_command_repeats_what_the_run_predicted(order, folder):
  done = commands.run(
    "finetune.predict",
    f"--workdir={order}",
    f"--input={folder / 'order.tsv'}",
    f"--output={folder / 'again.jsonl'}",
  )
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout.splitlines()[-1])["accuracy"] == 1.0
  again, first = folder / "again.jsonl", order / "predictions.jsonl"
  for a, b in zip(_predictions(again), _predictions(first), strict=True):
    assert a["probabilities"] == pytest.approx(b["probabilities"], abs=1e-6)


def test_plain_lines_are_predicted_by_any_exported_folder(order, folder):
  (folder / "new.txt").write_text("delta ember\n\nfjord amber\n")
  done = commands.run(
    "finetune.predict",
    f"--init={order.parent / 'order_export'}",
    "--config=configs/finetune_classification.py",
    "--config.data.max_seq_length=32",
    f"--input={folder / 'new.txt'}",
    "--format=lines",
    f"--output={folder / 'new.jsonl'}",
  )
  assert done.returncode == 0, done.stderr
  found = [p["label"] for p in _predictions(folder / "new.jsonl")]
  assert [found[0], found[2]] == ["rising", "falling"]


def test_a_killed_run_goes_on_as_if_nothing_had_been(order, folder):
  """Twice: once by SIGTERM, which saves, once by SIGKILL, which does not."""
  workdir = folder / "killed"
  arguments = (
    "finetune",
    "--config=configs/finetune_classification.py",
    f"--init={folder / 'init'}",
    f"--workdir={workdir}",
    *SETTINGS,
    *_data(folder, "order.tsv"),
    "--config.train.num_epochs=300",
    "--config.eval.every_steps=50",
  )
  for step, number in ((11, signal.SIGTERM), (70, signal.SIGKILL)):
    process = commands.start(*arguments)
    deadline = time.monotonic() + 600
    while max(_rows(workdir, "train"), default=0) < step:
      assert process.poll() is None, process.communicate()[0][-2000:]
      assert time.monotonic() < deadline
      time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == (0 if number == signal.SIGTERM else -number)
    assert max(_rows(workdir, "train")) < max(_rows(order, "train")), output
  assert "continuing after step" in commands.output_of(*arguments)
  for split in ("train", "eval"):
    assert _rows(workdir, split) == _rows(order, split)
  ours, theirs = (
    safetensors.numpy.load_file(w / "model" / "model.safetensors")
    for w in (workdir, order)
  )
  assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_tags_are_those_of_transformers_pipeline(folder):
  workdir = folder / "tags"
  _finetune(
    folder,
    "ner",
    f"--workdir={workdir}",
    *_data(folder, "tags.conll"),
    "--config.train.num_epochs=150",
    "--config.eval.every_steps=50",
  )
  best = max(
    row["f1"] for row in metric_log.load_rows(workdir) if row["f1"] is not None
  )
  assert best == 1.0
  pipeline = transformers.pipeline(
    "token-classification",
    str(workdir / "model"),
    ignore_labels=[],
    device="cpu",
  )
  for row in _predictions(workdir / "predictions.jsonl"):
    theirs = pipeline(" ".join(row["words"]))
    assert [token["entity"] for token in theirs] == row["tags"]
  assert pipeline.model.config.id2label == {0: "O", 1: "B-LOC"}


def test_answers_are_those_of_transformers_model(folder):
  workdir = folder / "squad"
  _finetune(
    folder,
    "squad",
    f"--workdir={workdir}",
    *_data(folder, "squad.json"),
    "--config.data.max_query_length=16",
    "--config.data.doc_stride=8",
    "--config.train.num_epochs=60",
    "--config.eval.every_steps=20",
  )
  answers = json.loads((workdir / "predictions.json").read_text())
  right = sum(answers[f"{a} {b}"] == str(i) for i, (a, b) in enumerate(PAIRS))
  assert right >= 0.9 * len(PAIRS)
  model = transformers.BertForQuestionAnswering.from_pretrained(
    workdir / "model"
  )
  tokenizer = transformers.AutoTokenizer.from_pretrained(workdir / "model")
  nbest = json.loads((workdir / "nbest_predictions.json").read_text())
  context = f"{PAIRS[5][0]}, 5 ({PAIRS[5][1]})"
  inputs = tokenizer("Which number?", context, return_tensors="pt")
  with torch.no_grad():
    outputs = model(**inputs)
  in_context = inputs["token_type_ids"][0].bool().clone()
  in_context[-1] = False
  start, end = outputs.start_logits[0], outputs.end_logits[0]
  score = max(
    float(start[s] + end[e])
    for s in torch.where(in_context)[0]
    for e in torch.where(in_context)[0]
    if s <= e
  )
  found = nbest[" ".join(PAIRS[5])][0]
  assert found["score"] == pytest.approx(score, rel=1e-4, abs=1e-4)


def test_several_seeds_bring_their_mean_and_spread(folder):
  workdir = folder / "seeds"
  arguments = (
    "classification",
    f"--workdir={workdir}",
    f"--output={folder / 'seeds_export'}",
    "--seeds=2",
    *_data(folder, "order.tsv"),
    "--config.train.num_epochs=2",
  )
  output = _finetune(folder, *arguments)
  results = json.loads((workdir / "results.json").read_text())
  by_seed = results["accuracy"]["by_seed"]
  assert results["accuracy"]["mean"] == pytest.approx(sum(by_seed) / 2)
  assert "over 2 seeds" in output
  winner = by_seed.index(max(by_seed))
  assert (folder / "seeds_export" / "model.safetensors").read_bytes() == (
    workdir / f"seed_{winner}" / "model" / "model.safetensors"
  ).read_bytes()
  losses = [_rows(workdir / f"seed_{i}", "train")[1][0] for i in (0, 1)]
  assert losses[0] != losses[1]
  assert "is finished" in _finetune(folder, *arguments)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--config.train.batchsize=3"], "did you mean --config.train.batch_size"),
    (["--config.task.kind=ner"], "expected one of classification, multilabel"),
    (["--config.task.metric=bleu"], "expected one of accuracy, f1"),
    (["--config.data.max_seq_length=512"], "at most 64, the positions"),
    (["--config.data.label=stars"], "line 2 has no column 'stars'"),
    (["--init="], "--init is missing"),
  ],
)
def test_a_mistake_is_one_line_and_status_2(folder, arguments, message):
  done = commands.run(
    "finetune",
    "--config=configs/finetune_classification.py",
    f"--init={folder / 'init'}",
    f"--workdir={folder / 'mistake'}",
    "--config.data.max_seq_length=32",
    *_data(folder, "order.tsv"),
    *arguments,
  )
  assert done.returncode == 2
  assert message in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1
  assert not (folder / "mistake").exists()
