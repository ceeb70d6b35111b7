"""What the pretraining heads say of texts; transformers is the judge."""

import json

import numpy as np
import pytest
import torch
import transformers

from bert_jax.errors import UserError
from bert_jax.inference import fillings, next_sentence, pseudo_likelihood
from bert_jax.inference.pretraining_heads import (
  MASKED_LM,
  NEXT_SENTENCE,
  load_model,
)
from tests import commands
from tests.weights import tiny_bert

TEXTS = (
  "the [MASK] cat",
  "[MASK] and [MASK], b [MASK]",
  "a" + " b" * 40 + " [MASK]",
)
PAIRS = [("abc def", "ghi"), ("x", "a longer b, c d e f g"), ("one", "")]


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("model")
  tiny_bert.save(
    folder, transformers.BertForPreTraining, tiny_bert.make_vocab(("cat",))
  )
  return folder


@pytest.fixture(scope="module", name="theirs")
def _theirs(folder):
  return (
    transformers.BertForPreTraining.from_pretrained(folder).eval(),
    transformers.BertTokenizer.from_pretrained(folder),
  )


def test_every_mask_is_filled_as_by_transformers(folder, theirs):
  torch_model, tokenizer = theirs
  model = load_model(str(folder), MASKED_LM)
  filled = fillings.fill_masks(model, list(TEXTS), 4)
  assert [len(masks) for masks in filled] == [1, 3, 1]
  for text, masks in zip(TEXTS, filled, strict=True):
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
      logits = torch_model(**inputs).prediction_logits[0]
    places = torch.where(inputs["input_ids"][0] == tokenizer.mask_token_id)[0]
    for place, best in zip(places, masks, strict=True):
      expected = logits[place].softmax(-1).topk(4)
      tokens = tokenizer.convert_ids_to_tokens(expected.indices.tolist())
      assert [token for token, _ in best] == tokens
      np.testing.assert_allclose(
        [p for _, p in best], expected.values, rtol=1e-4
      )


def test_pairs_follow_as_transformers_says(folder, theirs, capsys):
  torch_model, tokenizer = theirs
  model = load_model(str(folder), NEXT_SENTENCE)
  # The report counts parameters as torch does: without padded rows.
  count = sum(weight.numel() for weight in torch_model.parameters())
  assert f", {count:,} parameters; " in capsys.readouterr().out
  found = next_sentence.judge_pairs(model, PAIRS)
  for (a, b), probability in zip(PAIRS, found, strict=True):
    inputs = tokenizer([a], [b], return_tensors="pt")
    with torch.no_grad():
      logits = torch_model(**inputs).seq_relationship_logits[0]
    assert probability == pytest.approx(logits.softmax(-1)[0].item(), rel=1e-4)


def _their_score(torch_model, tokenizer, ids, i):
  """Masks one token and looks up its log probability."""
  masked = [*ids[:i], tokenizer.mask_token_id, *ids[i + 1 :]]
  row = [tokenizer.cls_token_id, *masked, tokenizer.sep_token_id]
  with torch.no_grad():
    logits = torch_model(torch.tensor([row])).prediction_logits[0, 1 + i]
  return logits.log_softmax(-1)[ids[i]].item()


def test_scores_are_those_of_one_mask_after_the_other(folder, theirs):
  torch_model, tokenizer = theirs
  model = load_model(str(folder), MASKED_LM)
  texts = ["the cat", "", "abc, def!"]
  found = pseudo_likelihood.score_texts(model, texts, 5)
  for text, (ids, scores) in zip(texts, found, strict=True):
    expected = tokenizer.encode(text, add_special_tokens=False)
    assert ids.tolist() == expected
    wanted = [
      _their_score(torch_model, tokenizer, expected, i)
      for i in range(len(expected))
    ]
    np.testing.assert_allclose(scores, wanted, rtol=1e-4)


def test_a_long_text_is_scored_through_windows(folder, theirs):
  """Every token once, in a window of 62 that has 15 tokens on either side."""
  torch_model, tokenizer = theirs
  model = load_model(str(folder), MASKED_LM)
  text = " ".join("abcdefghij"[i * i % 10] for i in range(150))
  ((ids, scores),) = pseudo_likelihood.score_texts(model, [text], 64)
  assert len(ids) == len(scores) == 150
  for place, first in ((0, 0), (45, 0), (46, 31), (100, 62), (149, 88)):
    assert pseudo_likelihood._window_start(place, 150, 62) == first
    window = ids[first : first + 62].tolist()
    expected = _their_score(torch_model, tokenizer, window, place - first)
    assert scores[place] == pytest.approx(expected, rel=1e-4)
  for place in range(150):
    first = pseudo_likelihood._window_start(place, 150, 62)
    assert place - first >= min(15, place)
    assert first + 62 - place > min(15, 149 - place)


def test_what_a_model_cannot_judge_is_one_line(folder, tmp_path):
  model = load_model(str(folder), MASKED_LM)
  with pytest.raises(UserError, match=r"has 72 tokens; expected at most 64"):
    fillings.fill_masks(model, ["[MASK]" + " a" * 69])
  with pytest.raises(UserError, match="no \\[MASK\\] in 'plain'"):
    fillings.fill_masks(model, ["[MASK]", "plain"])
  with pytest.raises(UserError, match="is 1 texts; expected two"):
    list(next_sentence.iterate_judgements(str(folder), [("no tab", None)]))
  tiny_bert.save(tmp_path, transformers.BertModel, tiny_bert.make_vocab())
  with pytest.raises(UserError, match="no masked-LM head"):
    load_model(str(tmp_path), MASKED_LM)
  with pytest.raises(UserError, match="no next-sentence head"):
    load_model(str(tmp_path), NEXT_SENTENCE)


def test_an_output_layer_of_its_own_is_refused(tmp_path):
  """transformers would predict with it, and not with the embeddings."""
  tiny_bert.save(
    tmp_path,
    transformers.BertForPreTraining,
    tiny_bert.make_vocab(),
    tie_word_embeddings=False,
  )
  with pytest.raises(UserError, match="no masked-LM head"):
    load_model(str(tmp_path), MASKED_LM)
  assert load_model(str(tmp_path), NEXT_SENTENCE)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("module", "text", "keys"),
  [
    ("fill_mask", "a [MASK]\n[MASK] b\n", {"text", "masks"}),
    ("judge_next", "a\tb\nc\td e\n", {"text", "next", "probability"}),
    ("score", "a cat\nb\n", {"text", "score", "tokens", "token_scores"}),
  ],
)
def test_commands_write_a_json_line_for_each_text(
  folder, tmp_path, module, text, keys
):
  (tmp_path / "in.txt").write_text(text)
  done = commands.run(
    module,
    f"--model={folder}",
    f"--input={tmp_path / 'in.txt'}",
    f"--output={tmp_path / 'out.jsonl'}",
  )
  assert done.returncode == 0, done.stderr
  assert "init: " in done.stdout
  lines = (tmp_path / "out.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert len(records) == 2
  assert records[0].keys() == keys
  assert records[0]["text"] == text.splitlines()[0].split("\t")[0]


@pytest.mark.slow
def test_a_bad_row_is_one_line_and_no_file(folder, tmp_path):
  (tmp_path / "in.txt").write_text("a [MASK]\nnone\n")
  output = tmp_path / "out.jsonl"
  arguments = (f"--model={folder}", f"--output={output}")
  done = commands.run("fill_mask", *arguments, f"--input={tmp_path / 'in.txt'}")
  assert done.returncode == 2
  assert "no [MASK] in 'none'" in done.stderr.splitlines()[-1]
  assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]
  done = commands.run("score", *arguments)
  assert (done.returncode, "--input is missing" in done.stderr) == (2, True)
