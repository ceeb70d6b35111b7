"""Windows over long texts, and answers found in their characters again."""

import json

import numpy as np
import pytest
import transformers

from bert_jax.data.tokenization import create_tokenizer
from bert_jax.finetune import question_answering as qa
from bert_jax.finetune import squad_file
from bert_jax.finetune.config import default_config
from tests.weights import tiny_bert

VOCAB = tiny_bert.make_vocab(["the", "cat", "dog", "cafe", "who"])
TOKENIZER = create_tokenizer(VOCAB, lowercase=True)
NAMES = ("LABEL_0", "LABEL_1")
CONTEXT = (
  "The Dog.  Café (of the\tCAT), 1,234 the dog the cat the dog \u2003the end"
)


def _config(**settings):
  config = default_config()
  config.update_from_flattened_dict(
    {
      "task.kind": "question_answering",
      "data.max_seq_length": 20,
      "data.max_query_length": 4,
      "data.doc_stride": 6,
      **settings,
    }
  )
  return config


def _row(text, question="Who?", context=CONTEXT):
  label = ((context.index(text), text),) if text else ()
  return squad_file.Row("here", f"id of {text}", question, context, label)


def _logits(features, labels):
  """Logits that are sure of the labels."""
  one_hot = np.eye(features.max_seq_length, dtype=np.float32)[labels]
  # A window without the answer is less sure than the one that has it.
  return one_hot * np.where(labels[:, :1, None] > 0, 9, 4)


@pytest.mark.parametrize(
  "text", ["The Dog", "Dog.", "Café", "(of the\tCAT)", "1,234", "the end", "of"]
)
def test_an_answer_comes_back_to_the_letter_from_any_window(text):
  config = _config()
  rows = [_row(text)]
  features = qa.encode(rows, TOKENIZER, config)
  assert len(features) > 1
  labels = qa.span_labels(rows, features, NAMES)
  assert (labels[:, 0] > 0).any()
  (found,) = qa.decode(_logits(features, labels), rows, features, NAMES, config)
  assert found["text"] == text
  assert CONTEXT[found["nbest"][0]["start"] :].startswith(text)
  assert qa.score([found], rows, NAMES)["exact_match"] == 100


def test_windows_are_those_of_transformers_tokenizer(tmp_path):
  (tmp_path / "vocab.txt").write_text("".join(f"{t}\n" for t in VOCAB))
  theirs = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
  config = _config()
  features = qa.encode([_row("Café")], TOKENIZER, config)
  expected = theirs(
    "Who?",
    CONTEXT,
    truncation="only_second",
    max_length=20,
    stride=6,
    return_overflowing_tokens=True,
    padding="max_length",
  )
  found = features.arrays["input_ids"][:, :20]
  np.testing.assert_array_equal(found, expected["input_ids"])
  slots = np.arange(20)[None]
  in_b = (slots >= features.arrays["a_length"][:, None] + 2) & (
    slots < features.arrays["length"][:, None]
  )
  np.testing.assert_array_equal(in_b, expected["token_type_ids"])


def test_a_long_question_is_cut_and_an_empty_text_has_an_empty_answer():
  config = _config()
  rows = [_row(None, "w h o a r e y o u", ""), _row("Café", "a b c d e f g h")]
  features = qa.encode(rows, TOKENIZER, config)
  assert features.arrays["a_length"].max() == 4
  logits = np.zeros((len(features), 2, features.max_seq_length), np.float32)
  found = qa.decode(logits, rows, features, NAMES, config)
  assert found[0]["text"] == ""
  assert found[1]["text"] in CONTEXT


def test_the_best_span_is_the_one_that_a_search_of_all_spans_finds():
  config = _config(**{"task.max_answer_length": 3, "task.num_best": 50})
  rows = [_row("Café")]
  features = qa.encode(rows, TOKENIZER, config)
  rng = np.random.default_rng(0)
  shape = (len(features), 2, features.max_seq_length)
  logits = rng.normal(size=shape).astype(np.float32)
  (found,) = qa.decode(logits, rows, features, NAMES, config)
  best = max(
    (logits[w, 0, first + s] + logits[w, 1, first + e], w, s, e)
    for w, (first, tokens, _) in enumerate(features.places)
    for s in range(len(tokens))
    for e in range(s, min(s + 3, len(tokens)))
  )
  score, w, s, e = best
  _, _, words = features.places[w]
  assert found["text"] == CONTEXT[words[s, 0] : words[e, 1]]
  assert found["nbest"][0]["score"] == pytest.approx(float(score))
  assert sum(n["probability"] for n in found["nbest"]) == pytest.approx(1)
  texts = [n["text"] for n in found["nbest"]]
  assert len(set(texts)) == len(texts)
  scores = [n["score"] for n in found["nbest"]]
  assert scores == sorted(scores, reverse=True)


def test_no_answer_wins_by_more_than_the_threshold():
  rows = [_row("Café")]
  config = _config(**{"task.no_answer": True})
  features = qa.encode(rows, TOKENIZER, config)
  labels = qa.span_labels(rows, features, NAMES)
  logits = _logits(features, labels)  # the answer has 18
  logits[:, :, 0] = 10  # no answer has 20
  (found,) = qa.decode(logits, rows, features, NAMES, config)
  assert found["text"] == ""
  assert found["null_odds"] == pytest.approx(2)
  assert found["nbest"][0]["text"] == ""
  for threshold, text in ((1.9, ""), (2.1, "Café")):
    config.task.null_threshold = threshold
    (found,) = qa.decode(logits, rows, features, NAMES, config)
    assert found["text"] == text
  (found,) = qa.decode(logits, rows, features, NAMES, _config())
  assert found["text"] == "Café"


def test_a_misplaced_answer_is_looked_for_and_a_missing_one_told(capsys):
  config = _config(**{"data.max_seq_length": 64})
  right = _row("the cat")
  near = squad_file.Row(
    "here", "near", "Who?", CONTEXT, ((right.label[0][0] - 3, "the cat"),)
  )
  lost = squad_file.Row("here", "lost", "Who?", CONTEXT, ((4, "elephant"),))
  rows = [right, near, lost]
  features = qa.encode(rows, TOKENIZER, config)
  labels = qa.span_labels(rows, features, NAMES)
  np.testing.assert_array_equal(labels[0], labels[1])
  np.testing.assert_array_equal(labels[2], [0, 0])
  told = capsys.readouterr().out
  assert "1 questions" in told
  assert "first: lost" in told


def test_predictions_are_files_that_squads_script_reads(tmp_path):
  config = _config()
  rows = [_row("Café")]
  features = qa.encode(rows, TOKENIZER, config)
  labels = qa.span_labels(rows, features, NAMES)
  found = qa.decode(_logits(features, labels), rows, features, NAMES, config)
  qa.save_predictions(tmp_path / "predictions.json", rows, found)
  read = {
    path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()
  }
  assert read["predictions.json"] == {"id of Café": "Café"}
  assert read["nbest_predictions.json"]["id of Café"][0]["text"] == "Café"
  assert read["null_odds_predictions.json"]["id of Café"] < 0
