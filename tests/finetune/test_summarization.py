"""Extractive summaries: oracle, windows, blocking, and transformers' logits."""

import itertools
import json

import jax
import numpy as np
import pytest
import torch
import transformers
from rouge_score.rouge_scorer import RougeScorer

from bert_jax.data.tokenization import create_tokenizer
from bert_jax.errors import UserError
from bert_jax.finetune import losses, summarization
from bert_jax.finetune import model as model_lib
from bert_jax.finetune.config import default_config
from bert_jax.finetune.features import IGNORED
from bert_jax.finetune.tasks import KINDS
from tests import commands
from tests.weights import tiny_bert

SENTENCES = (
  "The cat sat on the mat today.",
  "Nobody saw the dog.",
  "A dog sat on the mat.",
  "Rain fell all day in the town.",
)
SUMMARY = "A cat sat on a mat.\nRain fell in town."


def _config(**settings):
  config = default_config()
  config.update_from_flattened_dict(
    {
      "task.kind": "summarization",
      "model.dtype": "float32",
      "data.text_a": "article",
      "data.label": "highlights",
      "data.max_seq_length": 32,
      **settings,
    }
  )
  return config


def _row(sentences=SENTENCES, oracle=(0, 3), label=SUMMARY):
  return summarization.Row("here", sentences, oracle, label)


def _rouge(chosen):
  scorer = RougeScorer(["rouge1", "rouge2"], use_stemmer=True)
  text = "\n".join(SENTENCES[i] for i in chosen)
  scores = scorer.score(SUMMARY, text)
  return sum(value.fmeasure for value in scores.values())


def test_the_oracle_takes_the_sentence_that_raises_rouge_most():
  first = summarization.choose_greedily(SENTENCES, SUMMARY, 1)
  assert _rouge(first) == max(_rouge([i]) for i in range(4))
  two = summarization.choose_greedily(SENTENCES, SUMMARY, 2)
  assert set(first) < set(two)
  assert _rouge(two) == max(_rouge(sorted({*first, i})) for i in range(4))
  # A third sentence would only cost precision.
  three = summarization.choose_greedily(SENTENCES, SUMMARY, 3)
  assert three == two == (0, 3)
  assert summarization.choose_greedily(SENTENCES, "xyz", 3) == ()


def test_no_two_chosen_sentences_share_three_words():
  scores = [0.9, 0.1, 0.8, 0.2]
  assert summarization.choose_best(SENTENCES, scores, 3) == [0, 1, 3]
  assert summarization.choose_best(SENTENCES, scores, 1) == [0]


def test_scores_are_rouge_beside_the_first_sentences():
  predictions = [{"summary": SENTENCES[3], "sentences": [3]}]
  found = summarization.score(predictions, [_row()], None)
  scorer = RougeScorer(["rougeLsum"], use_stemmer=True)
  for name, text in (
    ("rougeLsum", SENTENCES[3]),
    ("lead_rougeLsum", SENTENCES[0]),
  ):
    expected = scorer.score(SUMMARY, text)["rougeLsum"].fmeasure
    assert found[name] == pytest.approx(expected)
  assert next(iter(found)) == "rouge1"


def test_every_sentence_has_its_cls_in_some_window():
  """Windows end between sentences; a sentence too long for one is cut."""
  tokenizer = create_tokenizer(tiny_bert.make_vocab(), True)
  sentences = ("ab", "c" * 70, "d e", "f", "g h i j k l m n o p q r s t u")
  features = summarization.encode(
    [_row(sentences, (1, 4)), _row(("x",), ())], tokenizer, _config()
  )
  assert features.arrays["length"].max() <= 32
  cls = tokenizer.token_to_id("[CLS]")
  firsts = [first for first, _ in features.places]
  sizes = [len(slots) for _, slots in features.places]
  assert features.row_of.tolist() == [0] * (len(firsts) - 1) + [1]
  assert sum(sizes) == 6
  assert firsts[:-1] == [0, *itertools.accumulate(sizes[:-2])]
  labels = summarization.sentence_labels(
    [_row(sentences, (1, 4)), _row(("x",), ())], features, None
  )
  ids, types = (features.arrays[n] for n in ("input_ids", "token_type_ids"))
  np.testing.assert_array_equal(labels != IGNORED, ids == cls)
  assert labels[labels != IGNORED].tolist() == [0, 1, 0, 0, 1, 0]
  for row, kinds, length in zip(
    ids, types, features.arrays["length"], strict=True
  ):
    expected = (np.cumsum(row == cls) - 1) % 2
    np.testing.assert_array_equal(kinds[:length], expected[:length])
    assert not kinds[length:].any()


def test_documents_are_texts_or_lists_of_sentences(tmp_path):
  records = [
    {"article": " ".join(SENTENCES), "highlights": SUMMARY},
    {"article": list(SENTENCES), "highlights": SUMMARY.split("\n")},
  ]
  path = tmp_path / "a.jsonl"
  path.write_text("\n".join(map(json.dumps, records)))
  first, second = summarization.read_rows(str(path), _config(), True)
  assert first.sentences == second.sentences == SENTENCES
  assert first.label == second.label == SUMMARY
  assert first.oracle == second.oracle == (0, 3)
  path.write_text('{"article": " ", "highlights": "a"}\n')
  with pytest.raises(UserError, match="without a sentence"):
    summarization.read_rows(str(path), _config(), True)


def test_logits_and_loss_are_transformers(tmp_path):
  """By its class for tokens with one output, given our segments."""
  torch_model = tiny_bert.save(
    tmp_path / "a",
    transformers.BertForTokenClassification,
    tiny_bert.make_vocab(),
    num_labels=1,
    id2label={0: "in_summary"},
  )
  config = _config()
  found, head = model_lib.load_init(str(tmp_path / "a"), config)
  model = model_lib.create_task_model(config, found, head, ("in_summary",))
  params, fresh = model_lib.create_params(model)
  assert not fresh
  rows = [_row(("ab", "c d", "e")), _row(("f g", "hi"), (1,))]
  features = model_lib.encode(model, rows, labelled=True)
  logits = model_lib.make_predict(model, params)(params, features)
  arrays = {k: torch.tensor(v).long() for k, v in features.arrays.items()}
  slots = torch.arange(features.max_seq_length)
  with torch.no_grad():
    expected = torch_model(
      arrays["input_ids"],
      attention_mask=slots < arrays["length"][:, None],
      token_type_ids=arrays["token_type_ids"],
    ).logits
  counted = arrays["labels"] != IGNORED
  np.testing.assert_allclose(
    logits[counted.numpy()], expected[counted], rtol=1e-4, atol=1e-5
  )
  total, weight = jax.jit(losses.binary_cross_entropy_of_tokens)(
    logits, features.arrays["labels"]
  )
  loss = torch.nn.functional.binary_cross_entropy_with_logits(
    expected[counted][:, 0], arrays["labels"][counted].float()
  )
  assert float(total / weight) == pytest.approx(loss.item(), rel=1e-5)
  predictions = model_lib.decode(model, logits, rows, features)
  assert [len(p["scores"]) for p in predictions] == [3, 2]
  assert KINDS["summarization"].has_known_labels(rows, model.labels)


WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath")


def _write_documents(path, seed):
  """Documents of eight sentences, the two with "news" being the summary."""
  rng = np.random.default_rng(seed)
  records = []
  for _ in range(40):
    told = set(rng.choice(np.arange(3, 8), 2, replace=False).tolist())
    sentences = [
      " ".join(["news" if i in told else "tale", *rng.permutation(WORDS)[:3]])
      for i in range(8)
    ]
    summary = [sentences[i] for i in sorted(told)]
    records.append({"article": sentences, "highlights": summary})
  path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.slow
def test_the_commands_find_what_the_first_sentences_do_not_say(tmp_path):
  """Documents of two windows; ROUGE beside that of their beginning."""
  vocab = tiny_bert.make_vocab((*WORDS, "news", "tale"))
  tiny_bert.save(tmp_path / "init", transformers.BertModel, vocab)
  _write_documents(tmp_path / "train.jsonl", 0)
  _write_documents(tmp_path / "dev.jsonl", 1)
  commands.output_of(
    "finetune",
    "--config=configs/finetune_summarization.py",
    f"--init={tmp_path / 'init'}",
    f"--workdir={tmp_path / 'run'}",
    f"--config.data.train={tmp_path / 'train.jsonl'}",
    f"--config.data.dev={tmp_path / 'dev.jsonl'}",
    "--config.data.max_seq_length=32",
    "--config.task.num_sentences=2",
    "--config.model.dtype=float32",
    "--config.train.num_epochs=60",
    "--config.train.batch_size=16",
    "--config.eval.every_steps=100",
    "--config.optimizer.learning_rate=3e-3",
  )
  printed = commands.output_of(
    "finetune.predict",
    f"--workdir={tmp_path / 'run'}",
    f"--input={tmp_path / 'dev.jsonl'}",
    f"--output={tmp_path / 'out.jsonl'}",
  )
  scores = json.loads(printed.splitlines()[-1])
  assert scores["rouge1"] > 0.95 > 0.8 > scores["lead_rouge1"]
  records = (tmp_path / "dev.jsonl").read_text().splitlines()
  predictions = (tmp_path / "out.jsonl").read_text().splitlines()
  scorer = RougeScorer(["rougeLsum"], use_stemmer=True)
  found = []
  for record, prediction in zip(
    map(json.loads, records), map(json.loads, predictions), strict=True
  ):
    reference = "\n".join(record["highlights"])
    value = scorer.score(reference, prediction["summary"])["rougeLsum"]
    found.append(value.fmeasure)
  assert scores["rougeLsum"] == pytest.approx(np.mean(found))
  assert "lead_rougeLsum" in scores
