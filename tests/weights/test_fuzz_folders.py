"""Whatever is wrong in a folder: it loads, or one line says what."""

import json
import pathlib
import tempfile

import hypothesis
import pytest
import torch
import transformers
from hypothesis import strategies as st

from bert_jax.errors import UserError
from bert_jax.weights import pretrained
from tests.weights import tiny_bert

VOCAB = tiny_bert.make_vocab(("the", "river"))
LEAVES = st.sampled_from(
  [
    *(None, True, False, 0, -1, 3, 10**12, 10**400, 0.5, -1e308),
    *(float("nan"), float("inf"), "", "false", "[CLS]", "\ud800", "../x"),
    *("9" * 5_000, [], [1], ["a"], {}, {"a": 1}, {"type": "NFC"}),
  ]
)
VALUES = st.recursive(
  LEAVES,
  lambda inner: st.one_of(
    st.lists(inner, max_size=2),
    st.dictionaries(st.sampled_from(["content", "id", "type"]), inner),
  ),
  max_leaves=4,
)
# Files that most folders lack.
MORE = {
  "added_tokens.json": {"<url>": 5},
  "special_tokens_map.json": {"additional_special_tokens": ["[E1]"]},
  "modules.json": [
    {"path": "", "type": "a.Transformer"},
    {"path": "1_Pooling", "type": "a.Pooling"},
  ],
  "sentence_bert_config.json": {"max_seq_length": 16, "do_lower_case": False},
}


@pytest.fixture(scope="module", name="files")
def _files(tmp_path_factory):
  """The files of a folder, by name, the weights in three forms."""
  folder = tmp_path_factory.mktemp("folder")
  model = tiny_bert.save(folder, transformers.BertModel, VOCAB)
  torch.save(model.state_dict(), folder / "pytorch_model.bin")
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  tokenizer.save_pretrained(folder)
  weight_map = dict.fromkeys(model.state_dict(), "pytorch_model.bin")
  index = json.dumps({"weight_map": weight_map})
  (folder / "pytorch_model.bin.index.json").write_text(index)
  for name, value in MORE.items():
    (folder / name).write_text(json.dumps(value))
  return {path.name: path.read_bytes() for path in folder.iterdir()}


@st.composite
def changed_files(draw, files):
  """Draws the files of a folder, one of them broken or missing."""
  kept = {
    name: data
    for name, data in files.items()
    if name not in MORE or draw(st.booleans())
  }
  weights = ["model.safetensors", "pytorch_model.bin"]
  kept.pop(draw(st.sampled_from(weights)))
  name = draw(st.sampled_from(sorted(kept)))
  data = kept[name]
  how = draw(st.sampled_from(["value", "value", "bytes", "cut", "gone"]))
  if how == "value" and name.endswith(".json"):
    kept[name] = json.dumps(change(draw, json.loads(data))).encode()
  elif how == "gone":
    kept.pop(name)
  else:
    # Heads of binary files are where their structure is.
    at = draw(st.integers(0, min(len(data), draw(st.integers(1, len(data))))))
    rest = b"" if how == "cut" else data[at + 1 :]
    kept[name] = data[:at] + draw(st.binary(max_size=4)) + rest
  return kept


def change(draw, value):
  """Returns a JSON value with one part of it replaced, at any depth."""
  stops = draw(st.integers(0, 2)) == 0
  if stops or not isinstance(value, dict | list) or not value:
    return draw(VALUES)
  if isinstance(value, list):
    at = draw(st.integers(0, len(value) - 1))
    return [*value[:at], change(draw, value[at]), *value[at + 1 :]]
  key = draw(st.sampled_from(sorted(value)))
  return value | {key: change(draw, value[key])}


SETTINGS = hypothesis.settings(
  deadline=None,
  derandomize=True,
  database=None,
  # A failure is shown as it was found: shrinking takes minutes.
  phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
  suppress_health_check=list(hypothesis.HealthCheck),
)


def check(files):
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    for name, data in files.items():
      (folder / name).write_bytes(data)
    try:
      found = pretrained.load_init(folder)
      if found.vocab is not None:
        found.create_tokenizer().encode("the river")
    except UserError as error:
      assert "\n" not in str(error)
      assert len(str(error)) < 1_000
      print(str(error).encode("utf-8", "backslashreplace"))


@hypothesis.settings(SETTINGS, max_examples=40)
@hypothesis.given(data=st.data())
def test_no_folder_ends_in_anything_but_a_model_or_one_line(files, data):
  check(data.draw(changed_files(files)))


@pytest.mark.slow
@hypothesis.settings(SETTINGS, max_examples=1_000)
@hypothesis.given(data=st.data())
def test_no_folder_of_a_thousand_ends_in_a_traceback(files, data):
  check(data.draw(changed_files(files)))
