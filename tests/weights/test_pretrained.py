"""Models from elsewhere, made by transformers, torch and TensorFlow."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from bert_jax.data.pipeline import import_tensorflow
from bert_jax.errors import UserError
from bert_jax.model.bert import BertForPreTraining, create_params
from bert_jax.weights import hf, hf_config
from bert_jax.weights.pretrained import load_init, print_report, take_over

VOCAB = [
  *("[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
  *("the", "river", "stone", "##s", "moves", ".", "a", "b"),
]
# Sizes differ from one another, so that no kernel is square but the pooler's.
SIZES = {
  "vocab_size": len(VOCAB),
  "hidden_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 3,
  "intermediate_size": 40,
  "max_position_embeddings": 32,
  "hidden_act": "gelu_new",
}


def create_model(model_class=transformers.BertForPreTraining, **sizes):
  """Draws a model of transformers whose every weight tells."""
  torch.manual_seed(0)
  config = transformers.BertConfig(**SIZES | sizes)
  model = model_class(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  return model


def save_vocab(folder, vocab=VOCAB):
  (folder / "vocab.txt").write_text("".join(f"{t}\n" for t in vocab))


def save_bin(folder, model, state_dict=None, **options):
  """Saves a folder as transformers did before safetensors."""
  folder.mkdir()
  model.config.save_pretrained(folder)
  save_vocab(folder)
  state_dict = model.state_dict() if state_dict is None else state_dict
  torch.save(state_dict, folder / "pytorch_model.bin", **options)
  return folder


def save_safetensors(folder, model, **options):
  model.save_pretrained(folder, **options)
  save_vocab(folder)
  return folder


def draw_inputs():
  rng = np.random.default_rng(1)
  ids = rng.integers(0, len(VOCAB), (3, 16), np.int32)
  types = rng.integers(0, 2, (3, 16), np.int32)
  return ids, types, np.arange(16) < np.array([[16], [9], [3]])


def their_logits(model):
  """Returns the masked-LM and next-sentence logits of transformers."""
  ids, types, mask = draw_inputs()
  with torch.no_grad():
    output = model(
      input_ids=torch.tensor(ids, dtype=torch.long),
      token_type_ids=torch.tensor(types, dtype=torch.long),
      attention_mask=torch.tensor(mask, dtype=torch.long),
    )
  return output.prediction_logits.numpy(), output.seq_relationship_logits


def our_logits(pretrained):
  ids, types, mask = draw_inputs()
  every = np.tile(np.arange(16, dtype=np.int32), (3, 1))
  mlm_logits, nsp_logits = BertForPreTraining(pretrained.bert_config).apply(
    {"params": pretrained.params}, ids, types, mask, every, deterministic=True
  )
  return mlm_logits[..., : pretrained.bert_config.vocab_size], nsp_logits


def assert_same_logits(pretrained, model):
  mask = draw_inputs()[2]
  ours, theirs = our_logits(pretrained), their_logits(model)
  np.testing.assert_allclose(ours[0][mask], theirs[0][mask], atol=2e-4)
  np.testing.assert_allclose(ours[1], theirs[1], atol=2e-5)


def old_names(state_dict):
  return {
    name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
      "LayerNorm.bias", "LayerNorm.beta"
    ): tensor
    for name, tensor in state_dict.items()
  }


def test_all_ways_to_save_a_model_give_its_logits(tmp_path):
  """Formats, names and tied copies differ; the model is one."""
  model = create_model()
  tensors = model.state_dict()
  assert "cls.predictions.decoder.weight" in tensors
  positions = torch.arange(32)[None]
  buffered = {**tensors, "bert.embeddings.position_ids": positions}
  folders = [
    save_safetensors(tmp_path / "one", model),
    save_safetensors(tmp_path / "shards", model, max_shard_size="10KB"),
    save_bin(tmp_path / "bin", model),
    save_bin(tmp_path / "old_names", model, old_names(buffered)),
    save_bin(tmp_path / "old", model, _use_new_zipfile_serialization=False),
  ]
  assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
  for folder in folders:
    pretrained = load_init(folder)
    assert pretrained.unused == ()
    assert pretrained.vocab == VOCAB
    assert pretrained.lowercase
    assert_same_logits(pretrained, model)


def test_import_then_export_returns_every_bit(tmp_path):
  model = create_model()
  pretrained = load_init(save_bin(tmp_path / "in", model))
  tensors = hf.to_hf(pretrained.params, pretrained.bert_config, "pretraining")
  theirs = model.state_dict()
  assert len(tensors) == len(theirs) - 2  # the tied copies
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(tensor, theirs[name].numpy(), err_msg=name)


def test_classes_with_fewer_heads_yield_what_they_hold(tmp_path):
  for model_class, has_pooler, has_heads in (
    (transformers.BertModel, True, False),
    (transformers.BertForMaskedLM, False, True),
    (transformers.BertForSequenceClassification, True, False),
  ):
    model = create_model(model_class)
    name = model_class.__name__
    for folder in (
      save_safetensors(tmp_path / f"{name}_safetensors", model),
      save_bin(tmp_path / f"{name}_bin", model),
    ):
      pretrained = load_init(folder)
      assert ("pooler" in pretrained.params["bert"]) == has_pooler
      assert ("cls" in pretrained.params) == has_heads
      classifier = "classifier.weight" in model.state_dict()
      expected = {"classifier.weight", "classifier.bias"} if classifier else ()
      assert set(pretrained.unused) == set(expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_weights_of_other_precisions_are_widened_exactly(tmp_path, dtype):
  model = create_model().to(getattr(torch, dtype))
  folders = [
    save_bin(tmp_path / "bin", model),
    save_safetensors(tmp_path / "safetensors", model),
  ]
  expected = model.to(torch.float32).state_dict()
  for folder in folders:
    pretrained = load_init(folder)
    tensors = hf.to_hf(pretrained.params, pretrained.bert_config, "pretraining")
    for name, tensor in tensors.items():
      np.testing.assert_array_equal(tensor, expected[name].numpy())


@pytest.mark.parametrize("is_zip", [True, False])
def test_torch_files_with_views_and_shared_storages_are_read(tmp_path, is_zip):
  """Transposed, sliced and repeated: numbers lie where the strides say."""
  model = create_model()
  shared = torch.randn(50, 24)
  tensors = model.state_dict() | {
    "bert.embeddings.word_embeddings.weight": shared[7 : 7 + len(VOCAB)],
    "bert.embeddings.position_embeddings.weight": shared[18:],
    "bert.pooler.dense.weight": torch.randn(24, 24).t(),
    "bert.pooler.dense.bias": torch.ones(1).expand(24),
    "cls.predictions.transform.dense.bias": torch.nn.Parameter(torch.rand(24)),
    "cls.predictions.decoder.weight": shared[7 : 7 + len(VOCAB)],
    "epoch": 3,
  }
  folder = save_bin(
    tmp_path / "in", model, tensors, _use_new_zipfile_serialization=is_zip
  )
  pretrained = load_init(folder)
  assert pretrained.unused == ()
  ours = hf.to_hf(pretrained.params, pretrained.bert_config, "pretraining")
  for name, tensor in ours.items():
    np.testing.assert_array_equal(tensor, tensors[name].detach().numpy())


class _Malicious:
  def __reduce__(self):
    return os.mkdir, ("harm",)


def test_code_in_a_torch_file_is_not_run(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  model = create_model()
  for is_zip in (True, False):
    tensors = model.state_dict() | {"x": _Malicious()}
    name = f"zip_{is_zip}"
    save_bin(
      tmp_path / name, model, tensors, _use_new_zipfile_serialization=is_zip
    )
    with pytest.raises(UserError, match=r"holds a posix\.mkdir"):
      load_init(tmp_path / name)
  assert not (tmp_path / "harm").exists()


def test_a_whole_pickled_model_is_one_clear_line(tmp_path):
  model = create_model()
  folder = save_bin(tmp_path / "in", model, model)
  with pytest.raises(UserError, match="BertForPreTraining; expected a state"):
    load_init(folder)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_half_written_weights_are_one_clear_line(tmp_path, share):
  model = create_model()
  save_safetensors(tmp_path / "safe", model)
  save_bin(tmp_path / "zip", model)
  save_bin(tmp_path / "old", model, _use_new_zipfile_serialization=False)
  for path in (
    tmp_path / "safe" / "model.safetensors",
    tmp_path / "zip" / "pytorch_model.bin",
    tmp_path / "old" / "pytorch_model.bin",
  ):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"can't be read") as caught:
      load_init(path.parent)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_shard_is_named(tmp_path):
  save_safetensors(tmp_path / "in", create_model(), max_shard_size="10KB")
  (tmp_path / "in" / "model-00002-of-00003.safetensors").unlink(missing_ok=True)
  shards = sorted((tmp_path / "in").glob("*.safetensors"))
  shards[0].unlink()
  with pytest.raises(UserError, match=r"is missing; model\.safetensors\.index"):
    load_init(tmp_path / "in")


def test_an_untied_decoder_is_told(tmp_path):
  model = create_model()
  name = "cls.predictions.decoder.weight"
  tensors = model.state_dict() | {name: torch.zeros(len(VOCAB), 24)}
  pretrained = load_init(save_bin(tmp_path / "in", model, tensors))
  assert pretrained.unused == (name,)


def test_missing_config_keys_have_the_defaults_of_transformers(tmp_path):
  """Also what "gelu_pytorch_tanh" and a config without model_type mean."""
  (tmp_path / "config.json").write_text("{}")
  save_vocab(tmp_path)
  with pytest.raises(UserError, match="has no weights"):
    load_init(tmp_path)
  read = lambda: hf_config.load_bert_config(hf_path)  # noqa: E731
  hf_path = tmp_path / "config.json"
  theirs = transformers.BertConfig().to_dict()
  for field in hf.SHARED_FIELDS:
    assert getattr(read(), field) == theirs[field], field
  hf_path.write_text('{"hidden_act": "gelu_pytorch_tanh"}')
  assert read().hidden_act == "gelu_new"


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"model_type": "roberta"}, "model_type is 'roberta'.*expected 'bert'"),
    ({"hidden_act": "relu"}, "hidden_act is 'relu'.*expected gelu or"),
    ({"position_embedding_type": "relative_key"}, "relative_key"),
    ({"is_decoder": True}, "is_decoder is True"),
    ({"num_attention_heads": 5}, "multiple of num_attention_heads = 5"),
    ({"num_hidden_layers": "2"}, "num_hidden_layers is '2'"),
    ({"num_hidden_layers": 3}, r"no bert\.encoder\.layer\.2\."),
    (
      {"intermediate_size": 41},
      r"intermediate\.dense\.bias .* shape \(40,\); expected \(41,\)",
    ),
    (
      {"vocab_size": 15},
      r"word_embeddings\.weight .* shape \(14, 24\); expected \(15, 24\)",
    ),
  ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
  folder = save_bin(tmp_path / "in", create_model())
  config = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(config | change))
  with pytest.raises(UserError, match=message):
    load_init(folder)


def test_rows_without_a_token_get_names_and_too_few_rows_are_an_error(tmp_path):
  folder = save_bin(tmp_path / "in", create_model())
  save_vocab(folder, VOCAB[:-3])
  assert load_init(folder).vocab == [
    *VOCAB[:-3],
    *("[row 11]", "[row 12]", "[row 13]"),
  ]
  save_vocab(folder, [*VOCAB, "more"])
  with pytest.raises(UserError, match="has 15 tokens; expected at most 14"):
    load_init(folder)
  save_vocab(folder, VOCAB[:5])
  with pytest.raises(UserError, match=r"lacks \[MASK\]"):
    load_init(folder)
  (folder / "vocab.txt").unlink()
  assert load_init(folder).vocab is None


@pytest.mark.parametrize("lowercase", [True, False])
def test_tokenizer_json_alone_gives_vocabulary_and_casing(tmp_path, lowercase):
  folder = save_bin(tmp_path / "in", create_model())
  transformers.BertTokenizer(
    vocab=str(folder / "vocab.txt"),
    do_lower_case=lowercase,
    model_max_length=20,
  ).save_pretrained(folder)
  (folder / "vocab.txt").unlink()
  pretrained = load_init(folder)
  assert pretrained.vocab == VOCAB
  assert pretrained.lowercase == lowercase
  assert pretrained.max_length == 20


def test_folder_without_a_model_says_what_was_expected(tmp_path):
  with pytest.raises(UserError, match="holds no model; expected a workdir"):
    load_init(tmp_path)
  with pytest.raises(UserError, match="expected it with a workdir only"):
    load_init(tmp_path, step=3)


def save_tf1_checkpoint(folder, model, name="bert_model.ckpt"):
  """Writes a model of transformers as the original code names and lays it.

  The next-sentence weights keep their [2, D]; every kernel is [in, out].
  """
  tf = import_tensorflow()
  tensors = {}
  for path, tensor in model.state_dict().items():
    array = tensor.numpy()
    if "decoder" in path:
      continue
    path = path.replace(".", "/").replace("/layer/", "/layer_")
    if path == "cls/seq_relationship/weight":
      path = "cls/seq_relationship/output_weights"
    elif path.endswith("LayerNorm/weight"):
      path = path.replace("weight", "gamma")
    elif path.endswith("_embeddings/weight"):
      path = path.removesuffix("/weight")
    elif path.endswith("/weight"):
      path, array = path.replace("weight", "kernel"), array.T
    path = path.replace("LayerNorm/bias", "LayerNorm/beta")
    path = path.replace("seq_relationship/bias", "seq_relationship/output_bias")
    path = path.replace("predictions/bias", "predictions/output_bias")
    tensors[path] = array
    tensors[f"{path}/adam_m"] = np.zeros_like(array)
  tensors["global_step"] = np.int64(7)
  folder.mkdir(exist_ok=True)
  tf.raw_ops.SaveV2(
    prefix=str(folder / name),
    tensor_names=list(tensors),
    shape_and_slices=[""] * len(tensors),
    tensors=list(tensors.values()),
  )
  config = model.config.to_dict() | {"directionality": "bidi"}
  (folder / "bert_config.json").write_text(json.dumps(config))
  save_vocab(folder)


def test_tensorflow_1_checkpoint_gives_the_logits(tmp_path):
  model = create_model()
  folder = tmp_path / "uncased_L-2_H-24_A-3"
  save_tf1_checkpoint(folder, model)
  for source in (folder, folder / "bert_model.ckpt"):
    pretrained = load_init(source)
    assert pretrained.unused == ()
    assert pretrained.vocab == VOCAB
    assert_same_logits(pretrained, model)


@pytest.mark.parametrize(
  ("name", "token", "lowercase", "reason"),
  [
    ("uncased_L-2", "River", True, "folder is named uncased"),
    ("multi_cased_L-2", "river", False, "folder is named cased"),
    ("mine", "River", False, "vocabulary has capital letters"),
    ("mine", "river", True, "vocabulary has no capital letters"),
  ],
)
def test_casing_of_a_tensorflow_checkpoint_is_guessed_and_told(
  tmp_path, name, token, lowercase, reason
):
  save_tf1_checkpoint(tmp_path / name, create_model())
  save_vocab(tmp_path / name, [*VOCAB[:6], token])
  pretrained = load_init(tmp_path / name)
  assert pretrained.lowercase == lowercase
  assert any(reason in note for note in pretrained.notes)
  hint = tmp_path / name / "tokenizer_config.json"
  hint.write_text(json.dumps({"do_lower_case": not lowercase}))
  assert load_init(tmp_path / name).lowercase != lowercase


def test_broken_tensorflow_checkpoints_are_one_clear_line(tmp_path):
  save_tf1_checkpoint(tmp_path, create_model())
  save_tf1_checkpoint(tmp_path, create_model(), "model.ckpt-5")
  with pytest.raises(UserError, match=r"holds 2 checkpoints.*model\.ckpt-5"):
    load_init(tmp_path)
  data = tmp_path / "bert_model.ckpt.data-00000-of-00001"
  data.write_bytes(data.read_bytes()[:100])
  with pytest.raises(UserError, match=r"bert_model\.ckpt can't be read") as e:
    load_init(tmp_path / "bert_model.ckpt")
  assert "\n" not in str(e.value)


def test_fresh_weights_stay_where_the_source_has_none(tmp_path, capsys):
  model = create_model(transformers.BertForSequenceClassification)
  pretrained = load_init(save_bin(tmp_path / "in", model))
  fresh = create_params(pretrained.bert_config, jax.random.key(1))
  params, names = take_over(fresh, pretrained)
  assert len(names) == 7  # the two heads
  assert all(name.startswith("cls/") for name in names)
  jax.tree.map(np.testing.assert_array_equal, params["cls"], fresh["cls"])
  jax.tree.map(
    np.testing.assert_array_equal, params["bert"], pretrained.params["bert"]
  )
  print_report(pretrained, names)
  lines = capsys.readouterr().out.splitlines()
  count = sum(p.numel() for p in model.bert.parameters())
  assert f" {count:,} parameters;" in lines[0]
  assert lines[1:] == [
    "init: fresh weights for cls.predictions (5), cls.seq_relationship (2)",
    "init: passed over classifier (2)",
  ]


def test_weights_are_sharded_as_the_fresh_ones_were(tmp_path):
  pretrained = load_init(save_bin(tmp_path / "in", create_model()))
  mesh = jax.make_mesh(
    (8,),
    ("data",),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:8],
  )
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  fresh = jax.tree.map(
    lambda x: (
      jax.device_put(jnp.zeros(x.shape), split)
      if x.shape[0] % 8 == 0
      else jnp.zeros(x.shape)
    ),
    pretrained.params,
  )
  params, names = take_over(fresh, pretrained)
  assert names == ()
  kept = jax.tree.map(lambda x, y: x.sharding == y.sharding, params, fresh)
  assert all(jax.tree.leaves(kept))
  jax.tree.map(np.testing.assert_array_equal, params, pretrained.params)
  smaller = dataclasses.replace(pretrained.bert_config, intermediate_size=39)
  with pytest.raises(UserError, match=r"shape \(24, 40\).*expected \(24, 39\)"):
    take_over(create_params(smaller, jax.random.key(0)), pretrained)
