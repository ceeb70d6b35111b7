"""Claims about the exported folder; transformers is the judge."""

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from bert_jax.data.tokenization import SPECIAL_TOKENS, create_tokenizer
from bert_jax.errors import UserError
from bert_jax.model.bert import (
  BertConfig,
  BertForPreTraining,
  create_params,
  segment_inputs,
)
from bert_jax.weights import hf, hf_import
from bert_jax.weights.pretrained import load_init
from tests import commands
from tests.closeness import OTHER_LIBRARY, assert_close

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
VOCAB = [
  *SPECIAL_TOKENS,
  *(".", ",", "!", "?", "'", "-", "中", "é"),
  *LETTERS,
  *(f"##{letter}" for letter in LETTERS),
  *("the", "cat", "sat", "on", "mat", "un", "##aff", "##able"),
]
# Sizes differ from one another, so that no kernel is square but the pooler's.
CONFIG = BertConfig(
  vocab_size=len(VOCAB),
  hidden_size=24,
  num_hidden_layers=2,
  num_attention_heads=3,
  intermediate_size=40,
  hidden_act="gelu_new",
  max_position_embeddings=32,
)
CLASSES = {
  "pretraining": [
    transformers.BertForPreTraining,
    transformers.AutoModelForPreTraining,
  ],
  "mlm": [transformers.BertForMaskedLM, transformers.AutoModelForMaskedLM],
  "encoder": [transformers.BertModel, transformers.AutoModel],
}
TEXTS = [
  "The cat sat on the mat.",
  "Unaffable, isn't it? 中文 Café naïve\tz\x00z",
  "",
  "a [MASK] cat [SEP] x" + "y" * 120,
]


@pytest.fixture(scope="module")
def params():
  """Random weights, biases and scales included."""
  rng = np.random.default_rng(0)

  def draw(path, weight):
    mean = 1 if path[-1].key == "scale" else 0
    return rng.normal(mean, 0.3, weight.shape).astype(np.float32)

  return jax.tree.map_with_path(
    draw,
    jax.eval_shape(lambda: create_params(CONFIG, jax.random.key(0))),
  )


@pytest.fixture(scope="module")
def folders(params, tmp_path_factory):
  """One exported folder for each choice of heads."""
  root = tmp_path_factory.mktemp("exported")
  for heads in hf.HEADS:
    save(root / heads, params, heads)
  return root


@pytest.fixture
def warnings_of_transformers():
  """Collects what transformers logs at WARNING or above."""
  records = []
  handler = logging.Handler(logging.WARNING)
  handler.emit = records.append
  logger = logging.getLogger("transformers")
  logger.addHandler(handler)
  yield records
  logger.removeHandler(handler)


def save(output_dir, params, heads="pretraining", **changes):
  hf.save_pretrained(
    output_dir,
    params,
    changes.get("config", CONFIG),
    changes.get("vocab", VOCAB),
    lowercase=changes.get("lowercase", True),
    heads=heads,
    model_card="# A model\n",
    max_length=32,
  )


def our_outputs(params):
  """Returns inputs, both logits at all positions, and the mask."""
  rng = np.random.default_rng(1)
  ids = rng.integers(5, len(VOCAB), (3, 16), np.int32)
  types, mask = segment_inputs(np.array([3, 8, 1]), np.array([9, 16, 3]), 16)
  every = np.tile(np.arange(16, dtype=np.int32), (3, 1))
  mlm_logits, nsp_logits = BertForPreTraining(CONFIG).apply(
    {"params": params}, ids, types, mask, every, deterministic=True
  )
  inputs = {
    "input_ids": torch.tensor(ids, dtype=torch.long),
    "token_type_ids": torch.tensor(np.array(types), dtype=torch.long),
    "attention_mask": torch.tensor(np.array(mask), dtype=torch.long),
  }
  return inputs, mlm_logits[..., : len(VOCAB)], nsp_logits, np.asarray(mask)


@pytest.mark.parametrize("heads", list(hf.HEADS))
def test_folder_loads_in_its_own_classes_without_a_warning(
  folders, heads, warnings_of_transformers
):
  for model_class in CLASSES[heads]:
    model = model_class.from_pretrained(folders / heads)
    assert type(model).__name__ == hf.HEADS[heads][0]
  transformers.AutoTokenizer.from_pretrained(folders / heads)
  assert [record.getMessage() for record in warnings_of_transformers] == []


def test_warnings_would_be_seen(folders, warnings_of_transformers):
  """A folder without the pooler, read by a class that has one."""
  transformers.BertForPreTraining.from_pretrained(folders / "mlm")
  assert warnings_of_transformers


def test_pretraining_folder_gives_our_logits(folders, params):
  inputs, mlm_logits, nsp_logits, mask = our_outputs(params)
  model = transformers.BertForPreTraining.from_pretrained(
    folders / "pretraining"
  )
  with torch.no_grad():
    output = model.eval()(**inputs)
  assert_close(
    output.prediction_logits.numpy()[mask], mlm_logits[mask], OTHER_LIBRARY
  )
  assert_close(
    output.seq_relationship_logits.numpy(), nsp_logits, OTHER_LIBRARY
  )


def test_mlm_folder_gives_our_logits(folders, params):
  inputs, mlm_logits, _, mask = our_outputs(params)
  model = transformers.BertForMaskedLM.from_pretrained(folders / "mlm")
  with torch.no_grad():
    output = model.eval()(**inputs)
  assert_close(output.logits.numpy()[mask], mlm_logits[mask], OTHER_LIBRARY)


def test_encoder_folder_gives_the_body_of_the_pretraining_folder(folders):
  whole = transformers.BertForPreTraining.from_pretrained(
    folders / "pretraining"
  )
  encoder = transformers.BertModel.from_pretrained(folders / "encoder")
  expected = whole.bert.state_dict()
  assert encoder.state_dict().keys() == expected.keys()
  for name, tensor in encoder.state_dict().items():
    assert torch.equal(tensor, expected[name]), name


def test_fill_mask_pipeline_works(folders, params):
  fill = transformers.pipeline(
    "fill-mask", model=str(folders / "mlm"), device="cpu"
  )
  best = fill("the [MASK] sat on the mat.")[0]
  ids = create_tokenizer(VOCAB, True).encode("the [MASK] sat on the mat.").ids
  ids = np.array([ids], np.int32)
  mlm_logits, _ = BertForPreTraining(CONFIG).apply(
    {"params": params},
    ids,
    np.zeros_like(ids),
    np.ones_like(ids, dtype=bool),
    np.array([[2]], np.int32),
    deterministic=True,
  )
  probs = np.asarray(jax.nn.softmax(mlm_logits[0, 0]))
  assert best["token"] == probs.argmax()
  assert best["score"] == pytest.approx(probs.max(), rel=1e-3)


@pytest.mark.parametrize("lowercase", [True, False])
def test_exported_tokenizer_gives_our_ids(params, tmp_path, lowercase):
  """From tokenizer.json, and from vocab.txt alone."""
  save(tmp_path / "out", params, lowercase=lowercase)
  ours = create_tokenizer(VOCAB, lowercase)
  fast = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
  plain = transformers.BertTokenizer(
    vocab=str(tmp_path / "out" / "vocab.txt"), do_lower_case=lowercase
  )
  for text in TEXTS:
    expected = ours.encode(text).ids
    assert fast(text)["input_ids"] == expected
    assert plain(text)["input_ids"] == expected
  pair = fast(TEXTS[0], TEXTS[1])
  encoded = ours.encode(TEXTS[0], TEXTS[1])
  assert pair["input_ids"] == encoded.ids
  assert pair["token_type_ids"] == encoded.type_ids
  assert encoded.type_ids[-1] == 1
  assert fast.decode(fast("unaffable")["input_ids"][1:-1]) == "unaffable"
  assert fast.mask_token_id == VOCAB.index("[MASK]")
  assert len(fast("a " * 99, truncation=True)["input_ids"]) == 32


def test_lower_casing_also_strips_accents():
  ids = {
    lowercase: create_tokenizer(VOCAB, lowercase).encode("É").ids[1]
    for lowercase in (True, False)
  }
  assert ids == {True: VOCAB.index("e"), False: VOCAB.index("[UNK]")}


def test_round_trip_keeps_every_bit(folders, params):
  """Through the tensors and through the folder."""
  expected = jax.tree.map(np.array, params)
  # Padding rows are cut off on the way out and come back as zeros.
  expected["bert"]["embeddings"]["word_embeddings"][len(VOCAB) :] = 0
  expected["cls"]["predictions"]["bias"][len(VOCAB) :] = 0
  tensors = hf.to_hf(params, CONFIG, "pretraining")
  loaded = load_init(folders / "pretraining")
  assert loaded.bert_config == CONFIG
  for actual in (hf_import.from_hf(tensors, CONFIG)[0], loaded.params):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("heads", list(hf.HEADS))
def test_any_bert_folder_yields_the_parts_it_holds(folders, params, heads):
  loaded = load_init(folders / heads).params
  assert ("pooler" in loaded["bert"]) == (heads != "mlm")
  assert ("cls" in loaded) == (heads != "encoder")
  jax.tree.map(
    np.testing.assert_array_equal,
    loaded["bert"]["encoder"],
    params["bert"]["encoder"],
  )


def test_layer_norm_names_of_tensorflow_are_understood(params):
  tensors = hf.to_hf(params, CONFIG, "pretraining")
  old = {
    name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
      "LayerNorm.bias", "LayerNorm.beta"
    ): tensor
    for name, tensor in tensors.items()
  }
  assert old.keys() != tensors.keys()
  jax.tree.map(
    np.testing.assert_array_equal,
    hf_import.from_hf(old, CONFIG)[0],
    hf_import.from_hf(tensors, CONFIG)[0],
  )


def test_tensors_are_contiguous_float32_without_padding(params):
  tensors = hf.to_hf(params, CONFIG, "pretraining")
  for name, tensor in tensors.items():
    assert tensor.flags["C_CONTIGUOUS"], name
    assert tensor.dtype == np.float32, name
  table = tensors["bert.embeddings.word_embeddings.weight"]
  assert table.shape == (len(VOCAB), 24)
  assert tensors["cls.predictions.bias"].shape == (len(VOCAB),)


def test_tensor_names_are_those_transformers_saves(folders, tmp_path):
  for heads, (model_class, _) in CLASSES.items():
    model = model_class.from_pretrained(folders / heads)
    model.save_pretrained(tmp_path / heads)
    saved, ours = (
      safetensors.numpy.load_file(root / heads / hf.WEIGHTS_FILE)
      for root in (tmp_path, folders)
    )
    assert saved.keys() == ours.keys()
    for name, tensor in saved.items():
      np.testing.assert_array_equal(tensor, ours[name], err_msg=name)


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new"])
def test_activation_is_exported_as_trained(params, tmp_path, hidden_act):
  config = dataclasses.replace(CONFIG, hidden_act=hidden_act, dtype="bfloat16")
  save(tmp_path / "out", params, config=config)
  saved = json.loads((tmp_path / "out" / hf.CONFIG_FILE).read_text())
  assert saved["hidden_act"] == hidden_act
  assert saved["dtype"] == "float32"


def test_folder_holds_what_every_tool_reads(folders):
  names = {path.name for path in (folders / "mlm").iterdir()}
  assert names == {
    "README.md",
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
  }
  assert [path.name for path in folders.iterdir()].count("mlm") == 1
  assert not list(folders.glob("*.unfinished"))
  assert (folders / "mlm" / "README.md").read_text() == "# A model\n"


def test_export_replaces_an_export_and_nothing_else(params, tmp_path):
  save(tmp_path / "out", params)
  save(tmp_path / "out", params, "mlm")
  saved = json.loads((tmp_path / "out" / hf.CONFIG_FILE).read_text())
  assert saved["architectures"] == ["BertForMaskedLM"]
  (tmp_path / "out" / "thesis.tex").write_text("precious")
  with pytest.raises(UserError, match=r"thesis\.tex"):
    save(tmp_path / "out", params)
  assert (tmp_path / "out" / "thesis.tex").read_text() == "precious"


def test_vocabulary_of_another_size_is_refused(params, tmp_path):
  with pytest.raises(UserError, match=f"{len(VOCAB) - 1} tokens"):
    save(tmp_path / "out", params, vocab=VOCAB[:-1])
  assert not (tmp_path / "out").exists()


def test_missing_or_misshapen_tensors_are_named(params):
  tensors = hf.to_hf(params, CONFIG, "pretraining")
  name = "bert.encoder.layer.1.intermediate.dense.weight"
  with pytest.raises(UserError, match=name):
    hf_import.from_hf({k: v for k, v in tensors.items() if k != name}, CONFIG)
  # The transpose has as many numbers, all of them in the wrong place.
  with pytest.raises(UserError, match=r"\(24, 40\); expected \(40, 24\)"):
    hf_import.from_hf(tensors | {name: tensors[name].T}, CONFIG)


def test_export_needs_neither_torch_nor_transformers():
  code = (
    "import sys, bert_jax.weights.hf; "
    "print({'torch', 'transformers', 'tensorflow'} & set(sys.modules))"
  )
  done = commands.run_program(code)
  assert done.stdout.strip() == "set()", done.stderr
