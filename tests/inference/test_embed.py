"""Features of text; transformers' hidden states are the judge."""

import gzip
import json
import warnings

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from bert_jax.data.rows import iterate_rows
from bert_jax.errors import UserError
from bert_jax.inference import embedding
from bert_jax.weights.pretrained import load_init
from tests import commands

LETTERS = "abcdefgh"
VOCAB = [
  *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "."),
  *LETTERS,
  *(f"##{letter}" for letter in LETTERS),
]
TEXTS = [
  ("The cat", None),
  ("", None),
  ("abc " * 30, "cat."),  # too long: cut
  ("bad cab", "the abc"),
  ("a", ""),
  *((f"{letter} cat " * i, None) for i, letter in enumerate(LETTERS)),
]
MAX_LENGTH = 48


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
  """A random model of five layers, as transformers saves it."""
  folder = tmp_path_factory.mktemp("model")
  torch.manual_seed(0)
  config = transformers.BertConfig(
    vocab_size=len(VOCAB),
    hidden_size=24,
    num_hidden_layers=5,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=MAX_LENGTH,
    initializer_range=0.3,
  )
  transformers.BertModel(config).save_pretrained(folder)
  (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
  return folder


def their_features(folder, layers, pooling):
  """Returns one array a text, computed text by text without padding."""
  model = transformers.AutoModel.from_pretrained(folder).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  features = []
  for text, pair in TEXTS:
    # In lists: a lone empty second text would pass for none.
    inputs = tokenizer(
      [text],
      None if pair is None else [pair],
      truncation=True,
      max_length=MAX_LENGTH,
      return_tensors="pt",
    )
    with torch.no_grad():
      states = model(**inputs, output_hidden_states=True).hidden_states
    x = np.concatenate([states[i][0].numpy() for i in layers], axis=-1)
    features.append({"mean": x.mean(0), "cls": x[0], "tokens": x}[pooling])
  return features


def our_features(folder, layers, pooling, batch_size=4):
  embedder = embedding.create_embedder(
    load_init(folder), layers, pooling, None, batch_size
  )
  return [r.vectors for r in embedding.embed_rows(embedder, iter(TEXTS))]


def assert_same(ours, theirs):
  assert len(ours) == len(theirs)
  for ours_row, theirs_row in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(ours_row, theirs_row, atol=2e-5)


@pytest.mark.parametrize("pooling", embedding.POOLINGS)
@pytest.mark.parametrize(
  ("layers", "chosen"),
  [("last", [5]), ("last4", [5, 4, 3, 2]), ("0,3,-1", [0, 3, 5])],
)
def test_features_are_the_hidden_states_of_transformers(
  folder, layers, chosen, pooling
):
  ours = our_features(folder, layers, pooling)
  assert_same(ours, their_features(folder, chosen, pooling))


def test_order_and_values_do_not_depend_on_batches_or_windows(
  folder, monkeypatch
):
  expected = our_features(folder, "last", "tokens", 64)
  assert_same(our_features(folder, "last", "tokens", 1), expected)
  monkeypatch.setattr(embedding, "_WINDOW_BYTES", 20_000)
  assert_same(our_features(folder, "last", "tokens", 1), expected)
  monkeypatch.setattr(embedding, "_WINDOW_BATCHES", 1)
  assert_same(our_features(folder, "last", "tokens", 1), expected)


def test_few_programs_are_compiled(folder):
  """Lengths from 2 to 48 are padded to 16, 32 or 48."""
  embedder = embedding.create_embedder(
    load_init(folder), "last", "cls", None, 16
  )
  rows = [("a " * n, None) for n in range(46)]
  list(embedding.embed_rows(embedder, rows))
  assert embedder.step.func._cache_size() <= 3


def test_rows_are_read_only_a_window_ahead(folder, monkeypatch):
  monkeypatch.setattr(embedding, "_WINDOW_BATCHES", 2)
  embedder = embedding.create_embedder(
    load_init(folder), "last", "cls", None, 16
  )
  read = []

  def rows():
    for i in range(1000):
      read.append(i)
      yield "a cat", None

  next(embedding.embed_rows(embedder, rows()))
  assert len(read) == 2 * embedder.batch_size


def write_jsonl(path):
  with path.open("w") as f:
    for text, pair in TEXTS:
      record = {"body": text}
      if pair is not None:
        record["text_pair"] = pair
      f.write(json.dumps(record) + "\n")


@pytest.mark.slow
def test_command_writes_the_three_kinds_of_files(folder, tmp_path):
  write_jsonl(tmp_path / "in.jsonl")
  expected = {
    pooling: their_features(folder, [5], pooling)
    for pooling in ("mean", "tokens")
  }
  lengths = [len(x) for x in expected["tokens"]]
  for pooling in expected:
    for suffix in ("npz", "jsonl", "safetensors"):
      output = tmp_path / f"{pooling}.{suffix}"
      done = commands.run(
        "embed",
        f"--init={folder}",
        f"--input={tmp_path / 'in.jsonl'}",
        f"--output={output}",
        f"--pooling={pooling}",
        "--text_key=body",
        "--batch_size=3",
      )
      assert done.returncode == 0, done.stderr
      assert "13 rows (1 cut at 48 tokens) as vectors of 24" in done.stdout
      if suffix == "jsonl":
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        if pooling == "tokens":
          assert rows[0]["tokens"] == ["[CLS]", "the", "cat", "[SEP]"]
        key = {"mean": "embedding", "tokens": "embeddings"}[pooling]
        assert_same([row[key] for row in rows], expected[pooling])
        continue
      load = np.load if suffix == "npz" else safetensors.numpy.load_file
      arrays = dict(load(output))
      assert arrays["embeddings"].dtype == np.float32
      if pooling == "mean":
        assert_same(arrays["embeddings"], expected["mean"])
      else:
        assert arrays["lengths"].tolist() == lengths
        assert arrays["input_ids"][:4].tolist() == [2, 5, 6, 3]
        assert_same(
          np.split(arrays["embeddings"], np.cumsum(lengths)[:-1]),
          expected["tokens"],
        )
  assert not list(tmp_path.glob("*.unfinished"))


@pytest.mark.slow
def test_a_bad_row_ends_in_one_line_and_no_file(folder, tmp_path):
  (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"text": 3}\n')
  done = commands.run(
    "embed",
    f"--init={folder}",
    f"--input={tmp_path / 'in.jsonl'}",
    f"--output={tmp_path}/o.npz",
  )
  assert done.returncode == 2
  assert done.stderr.splitlines()[-1].startswith("error: ")
  assert "row 2" in done.stderr
  assert "Traceback" not in done.stderr
  assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.jsonl", b'{"text": "a"}\nnot json\n', "row 2 can't be read"),
    ("a.jsonl", b'{"text": "a"}\n\n', "row 2 can't be read"),
    ("a.jsonl", b'["a"]\n', "row 1 .* a JSON list; expected an object"),
    ("a.jsonl", b'{"words": "a"}\n', "no text under 'text' .*'words'"),
    ("a.jsonl", b'{"text": "a", "text_pair": 1}\n', "'text_pair' is a int"),
    ("a.txt", b"a\nb\n\xff\n", "row 3 can't be read"),
    ("a.txt.gz", b"plain", "can't be read: Not a gzipped file"),
    ("a.csv", b"a", "should end in .txt"),
  ],
)
def test_bad_rows_are_named(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=message):
    list(iterate_rows(tmp_path / name, "text"))
  with pytest.raises(UserError, match="can't be read"):
    list(iterate_rows(tmp_path / "none.txt", "text"))


def test_rows_are_the_lines(tmp_path):
  """Empty lines count, Windows' line ends, marks and half characters don't."""
  text = b"\xef\xbb\xbfone\r\n\ntwo \x00 three\n"
  (tmp_path / "a.txt").write_bytes(text)
  (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text))
  expected = [("one", None), ("", None), ("two \x00 three", None)]
  assert list(iterate_rows(tmp_path / "a.txt", "text")) == expected
  assert list(iterate_rows(tmp_path / "a.txt.gz", "text")) == expected
  (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d", "text_pair": null}\n')
  assert list(iterate_rows(tmp_path / "a.jsonl", "text")) == [("?", None)]


@pytest.mark.parametrize(
  ("layers", "max_length", "batch_size", "message"),
  [
    ("first", None, 1, "--layers=first is not understood"),
    ("6", None, 1, "layer 6; expected -6 to 5"),
    ("last", 49, 1, "--max_length=49; expected 4 to 48"),
    ("last", None, 0, "--batch_size=0"),
  ],
)
def test_settings_that_do_not_fit_are_named(
  folder, layers, max_length, batch_size, message
):
  with pytest.raises(UserError, match=message):
    embedding.create_embedder(
      load_init(folder), layers, "cls", max_length, batch_size
    )


def test_a_folder_of_sentence_transformers_says_how_to_pool(folder, tmp_path):
  """As it writes folders today: a name for the pooling, and a last module."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sentence_transformers import SentenceTransformer, models
  body = models.Transformer(str(folder), max_seq_length=9)
  pooling = models.Pooling(24, pooling_mode="cls")
  theirs = SentenceTransformer(
    modules=[body, pooling, models.Normalize()], device="cpu"
  )
  theirs.save(str(tmp_path))
  embedder = embedding.create_embedder(
    load_init(tmp_path), "last", None, None, 4
  )
  texts = [text for text, _ in TEXTS]
  rows = embedding.embed_rows(embedder, ((text, None) for text in texts))
  assert_same([row.vectors for row in rows], theirs.encode(texts))
  (tmp_path / "1_Pooling" / "config.json").write_text(
    '{"pooling_mode_max_tokens": true}'
  )
  with pytest.raises(UserError, match=r"pools by 'pooling_mode_max_tokens'"):
    embedding.create_embedder(load_init(tmp_path), "last", None, None, 4)
