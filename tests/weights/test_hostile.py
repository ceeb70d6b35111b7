"""Folders that would exhaust, hang or mislead: one line each, and at once."""

import json
import os
import pickle
import resource
import zipfile

import pytest
import torch
import transformers
from etils import epath

from bert_jax.errors import UserError
from bert_jax.weights import hf_config, pretrained
from tests.weights import tiny_bert

VOCAB = tiny_bert.make_vocab(("river",))
# Above what reading a folder of 60 kB may add; 22 GB was seen.
MAX_BYTES = 300 * 2**20


@pytest.fixture(name="folder")
def _folder(tmp_path):
  """A folder with model.safetensors."""
  folder = tmp_path / "in"
  tiny_bert.save(folder, transformers.BertForPreTraining, VOCAB)
  return folder


def use_bin(folder, change=None):
  """Turns the weights to pytorch_model.bin; returns the state dict."""
  model = transformers.BertForPreTraining.from_pretrained(folder)
  tensors = {name: t.clone() for name, t in model.state_dict().items()}
  if change:
    tensors = change(tensors)
  (folder / "model.safetensors").unlink(missing_ok=True)
  torch.save(tensors, folder / "pytorch_model.bin")
  return tensors


def configure(folder, **changes):
  path = folder / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_refused(folder, message):
  with pytest.raises(UserError, match=message) as error:
    pretrained.load_init(folder)
  assert "\n" not in str(error.value)
  assert len(str(error.value)) < 800


def peak_bytes():
  return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


CONFIGS = [
  ({"num_hidden_layers": 10**9}, r"has no bert\.encoder\.layer\.2\."),
  ({"vocab_size": 10**12}, r"expected \(1000000000000, 24\)"),
  ({"hidden_size": 3 * 10**12}, "shape .*expected .*hidden_size"),
  ({"max_position_embeddings": 10**15}, "max_position_embeddings"),
  ({"type_vocab_size": 10**15}, "type_vocab_size"),
  ({"intermediate_size": 10**15}, "intermediate_size"),
  ({"num_attention_heads": 0}, "num_attention_heads is 0"),
  ({"num_hidden_layers": True}, "num_hidden_layers is True"),
  ({"hidden_act": ["gelu"]}, r"hidden_act is \['gelu'\]"),
  ({"hidden_act": {"a": 1}}, "hidden_act is"),
  ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
  ({"layer_norm_eps": -1e-12}, "layer_norm_eps is"),
  ({"layer_norm_eps": 10**400}, "layer_norm_eps is 1000"),
  ({"hidden_dropout_prob": 7}, "hidden_dropout_prob is 7.*0 <= p < 1"),
  ({"hidden_dropout_prob": "0.1"}, "hidden_dropout_prob is '0.1'"),
  ({"classifier_dropout": 1.0}, "classifier_dropout is 1.0"),
  ({"initializer_range": None}, "initializer_range is None"),
  ({"vocab_size": 30.5}, "vocab_size is 30.5"),
  ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
  ({"model_type": ["bert"]}, "model_type is"),
]


@pytest.mark.parametrize(("changes", "message"), CONFIGS)
def test_a_config_counts_as_far_as_the_tensors_reach(folder, changes, message):
  configure(folder, **changes)
  before = peak_bytes()
  assert_refused(folder, message)
  assert peak_bytes() - before < MAX_BYTES


PEERS = [
  ({"model_type": "distilbert"}, "no token types and no pooler"),
  ({"model_type": "roberta"}, "byte-level BPE"),
  ({"model_type": "xlm-roberta"}, "SentencePiece"),
  ({"model_type": "albert"}, "share their weights"),
  ({"model_type": "electra"}, "discriminator"),
  ({"model_type": "deberta-v2"}, "relative positions"),
  ({"model_type": "modernbert"}, "rotary"),
  ({"model_type": "gpt2"}, "another architecture"),
  ({"position_embedding_type": "relative_key_query"}, "distances"),
  ({"is_decoder": True}, "only what is before it"),
  ({"add_cross_attention": True}, "another sequence"),
  ({"quantization_config": {"bits": 4}}, "not plain numbers"),
  ({"auto_map": {"AutoModel": "a.B"}}, "its own code"),
]


@pytest.mark.parametrize(("changes", "reason"), PEERS)
def test_other_models_are_refused_by_name_with_the_reason(
  folder, changes, reason
):
  configure(folder, **changes)
  assert_refused(folder, f"{next(iter(changes))}.*{reason}|{reason}.*auto_map")


@pytest.mark.parametrize("peer", ["DistilBert", "Roberta"])
def test_folders_of_peers_as_transformers_writes_them_are_refused(
  tmp_path, peer
):
  config = getattr(transformers, f"{peer}Config")(
    vocab_size=40, hidden_size=12, num_hidden_layers=1, num_attention_heads=2
  )
  getattr(transformers, f"{peer}Model")(config).save_pretrained(tmp_path)
  assert_refused(tmp_path, f"model_type is '{peer.lower()}'")


def index(folder, weight_map):
  (folder / "model.safetensors").rename(folder / "part.safetensors")
  text = json.dumps({"weight_map": weight_map})
  (folder / "model.safetensors.index.json").write_text(text)


@pytest.mark.parametrize(
  "name",
  ["../part.safetensors", "/dev/zero", "a/b", "..", "", 7, None, ["a"], "a\0b"],
)
def test_a_shard_is_a_plain_name(folder, name):
  index(folder, {"x": name})
  assert_refused(folder, "lists a file .*expected a plain name")


@pytest.mark.parametrize("weight_map", [None, [], {}, "part", 3])
def test_a_weight_map_is_an_object(folder, weight_map):
  index(folder, weight_map)
  assert_refused(folder, "has no weight_map")


def test_only_regular_files_are_read(folder):
  """A FIFO would wait for ever and /dev/zero would never end."""
  weights = folder / "model.safetensors"
  weights.unlink()
  weights.symlink_to("/dev/zero")
  assert_refused(folder, "model.safetensors is a folder or a device")
  weights.unlink()
  os.mkfifo(weights)
  assert_refused(folder, "model.safetensors is a folder or a device")
  weights.unlink()
  weights.mkdir()
  assert_refused(folder, "model.safetensors is a folder or a device")
  weights.rmdir()


@pytest.mark.parametrize("name", ["config.json", "vocab.txt"])
def test_a_fifo_is_not_waited_for(folder, name):
  (folder / name).unlink()
  os.mkfifo(folder / name)
  assert_refused(folder, f"{name} is a folder or a device")


def test_a_link_to_a_file_is_read(folder, tmp_path):
  """As in Hugging Face's cache."""
  (folder / "model.safetensors").rename(tmp_path / "blob")
  (folder / "model.safetensors").symlink_to(tmp_path / "blob")
  assert pretrained.load_init(folder).vocab == VOCAB


def test_a_file_that_unpacks_to_more_is_refused(folder):
  """1.5 MB became 3.5 GB."""
  use_bin(folder)
  path = folder / "pytorch_model.bin"
  with zipfile.ZipFile(path) as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, data in members.items():
      archive.writestr(name, data)
  assert_refused(folder, "it is compressed")


def test_repeated_numbers_do_not_make_a_tensor_larger_than_the_file(folder):
  def expand(tensors):
    name = "bert.embeddings.position_embeddings.weight"
    return tensors | {name: torch.ones(1, 24).expand(10**9, 24)}

  use_bin(folder, expand)
  configure(folder, max_position_embeddings=10**9)
  before = peak_bytes()
  assert_refused(folder, "numbers; expected at most")
  assert peak_bytes() - before < MAX_BYTES


@pytest.mark.parametrize(
  "data",
  [
    # BINBYTES8 of 2**60 bytes; LONG_BINPUT at 2**31 - 1; a cut GLOBAL.
    b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b".",
    b"\x80\x02]r\xff\xff\xff\x7f.",
    b"\x80\x02ctorch\n",
    b"",
    b"PK",
    pickle.dumps({"a": 1}),
    pickle.dumps([1]) * 5,
  ],
)
def test_a_pickle_that_asks_for_memory_is_refused(folder, data):
  (folder / "model.safetensors").unlink()
  (folder / "pytorch_model.bin").write_bytes(data)
  before = peak_bytes()
  assert_refused(folder, "pytorch_model.bin can't be read")
  assert peak_bytes() - before < MAX_BYTES


def test_lfs_pointers_and_unfinished_downloads_are_said_to_be_such(folder):
  pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
  for name in ("model.safetensors", "vocab.txt", "config.json"):
    whole = (folder / name).read_bytes()
    (folder / name).write_text(pointer)
    assert_refused(folder, f"{name} is a git-lfs pointer.*git lfs pull")
    (folder / name).write_bytes(whole)
  cache = folder / ".cache" / "huggingface" / "download"
  cache.mkdir(parents=True)
  (folder / "model.safetensors").rename(cache / "x.incomplete")
  assert_refused(folder, "has no weights.*x.incomplete is a download")


def test_wrong_shapes_and_missing_tensors_name_the_file(folder):
  name = "bert.encoder.layer.1.output.dense.weight"
  whole = use_bin(folder)
  use = lambda t: torch.save(t, folder / "pytorch_model.bin")  # noqa: E731
  use(whole | {name: torch.ones(3, 4)})
  assert_refused(folder, rf"{name} of .*pytorch_model.bin has shape \(3, 4\)")
  use({k: v for k, v in whole.items() if k != name})
  assert_refused(folder, f"pytorch_model.bin has no {name}")
  use(whole | {name: torch.ones(24, 40, dtype=torch.int8)})
  assert_refused(folder, "is of int8; expected floating-point")
  use({f"layers.{i}": torch.ones(2) for i in range(5)})
  assert_refused(folder, r"it has: layers\.0, layers\.1, layers\.2, 5 tensors")


def test_shards_with_a_lost_tensor_name_the_file(tmp_path):
  model = tiny_bert.save(tmp_path / "whole", transformers.BertModel, VOCAB)
  model.save_pretrained(tmp_path / "in", max_shard_size="10KB")
  folder = tmp_path / "in"
  path = folder / "model.safetensors.index.json"
  saved = json.loads(path.read_text())
  first = next(iter(saved["weight_map"].values()))
  saved["weight_map"]["more"] = first
  path.write_text(json.dumps(saved))
  assert_refused(folder, f"{first} does not hold more")


@pytest.mark.parametrize("key", ["model", "state_dict", None])
def test_names_of_training_scripts_are_taken(folder, key):
  """DataParallel's "module.", and a state dict among other things."""

  def wrap(tensors):
    named = {f"module.{name}": tensor for name, tensor in tensors.items()}
    return {key: named, "optimizer": {"step": 3}, "epoch": 1} if key else named

  expected = pretrained.load_init(folder).params
  use_bin(folder, wrap)
  found = pretrained.load_init(folder)
  assert found.unused == ()
  theirs, ours = (
    p["bert"]["pooler"]["dense"]["kernel"] for p in (expected, found.params)
  )
  assert (theirs == ours).all()


def test_an_untied_decoder_is_left_out_and_told(folder):
  name = "cls.predictions.decoder.weight"
  use_bin(folder, lambda t: t | {name: t[name] + 1})
  assert "predictions" in pretrained.load_init(folder).params["cls"]
  configure(folder, tie_word_embeddings=False)
  found = pretrained.load_init(folder)
  assert "predictions" not in found.params["cls"]
  assert any("weights of its own" in note for note in found.notes)
  tied = "bert.embeddings.word_embeddings.weight"
  use_bin(folder, lambda t: t | {name: t[tied]})
  assert "predictions" in pretrained.load_init(folder).params["cls"]


def test_one_token_type_is_refused_for_pairs(tmp_path):
  tiny_bert.save(tmp_path, transformers.BertModel, VOCAB, type_vocab_size=1)
  found = pretrained.load_init(tmp_path)
  with pytest.raises(UserError, match=r"type_vocab_size 1.*expected two"):
    found.check_pairs()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"id2label": ["a", "b"]}, r"id2label is \['a', 'b'\]"),
    ({"id2label": {"0": 7}}, "not of names"),
    ({"id2label": {"0": "a", "1": "a"}}, "two outputs alike"),
    ({"architectures": "Bert"}, "architectures is 'Bert'"),
    ({"architectures": [3]}, "not of names"),
    ({"problem_type": 3}, "problem_type is 3"),
  ],
)
def test_settings_of_an_output_layer_are_checked(folder, changes, message):
  configure(folder, **changes)
  with pytest.raises(UserError, match=message):
    hf_config.load_head_settings(epath.Path(folder / "config.json"), 2)


def test_a_source_whose_name_can_not_be_one_is_refused():
  for name in (os.fsdecode(b"caf\xe9"), "a" * 5_000, "a\0b"):
    with pytest.raises(UserError, match=r"UTF-8|looked for|holds no") as error:
      pretrained.load_init(name)
    assert "\n" not in str(error.value)
