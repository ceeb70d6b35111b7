"""Foreign tokenizers: transformers' own ids, or one line that says why not."""

import json

import pytest
import tokenizers
import transformers
from tokenizers import normalizers, pre_tokenizers

from bert_jax.data.tokenization import SPECIAL_TOKENS, create_tokenizer
from bert_jax.errors import UserError
from bert_jax.weights import hf, pretrained
from tests.weights import tiny_bert

VOCAB = tiny_bert.make_vocab(
  ("the", "river", "River", "caf\u00e9", "cafe", "\u4e2d", "##\u00e9")
)
TEXTS = [
  "The River's cafe\u0301, caf\u00e9 CAF\u00c9",
  "a\u4e2db\x00 [MASK] <url> the river<url>x",
  "",
  "Rivers of [E1] and [e1] \u0130",
]


@pytest.fixture(scope="module", name="model")
def _model(tmp_path_factory):
  """A folder with the vocabulary and four rows more, without a tokenizer."""
  folder = tmp_path_factory.mktemp("model")
  more = [f"more{i}" for i in range(4)]
  tiny_bert.save(folder, transformers.BertModel, [*VOCAB, *more])
  (folder / "vocab.txt").unlink()
  return folder


def copy(model, folder, vocab=VOCAB, **files):
  """Copies the model; writes vocab.txt and JSON files (name_json=value)."""
  folder.mkdir()
  for path in model.iterdir():
    (folder / path.name).write_bytes(path.read_bytes())
  if vocab is not None:
    (folder / "vocab.txt").write_text("".join(f"{t}\n" for t in vocab))
  for name, value in files.items():
    (folder / name.replace("_json", ".json")).write_text(json.dumps(value))
  return folder


def tokenizer_json(lowercase=True, **changes):
  """Returns a tokenizer.json as an object, with parts replaced."""
  saved = json.loads(create_tokenizer(VOCAB, lowercase).to_str())
  for key, value in changes.items():
    saved[key] = saved[key] | value if isinstance(value, dict) else value
  return saved


def as_object(part):
  """Returns a normalizer or pre-tokenizer as a tokenizer.json has it."""
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece({"a": 0}))
  name = (
    "normalizer"
    if isinstance(part, normalizers.Normalizer)
    else "pre_tokenizer"
  )
  setattr(tokenizer, name, part)
  return json.loads(tokenizer.to_str())[name]


def assert_same_ids(folder):
  """Compares our ids with those of transformers, now and after an export."""
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  found = pretrained.load_init(folder)
  output = folder.with_name(f"{folder.name}_exported")
  hf.save_pretrained(
    output,
    found.params,
    found.bert_config,
    found.vocab,
    lowercase=found.lowercase,
    strip_accents=found.strip_accents,
    added_tokens=found.added_tokens,
    heads="encoder",
    model_card="",
    max_length=found.max_length,
  )
  exported = transformers.AutoTokenizer.from_pretrained(output)
  again = pretrained.load_init(output)
  for text in TEXTS:
    expected = theirs(text)["input_ids"]
    assert found.create_tokenizer().encode(text).ids == expected, text
    assert exported(text)["input_ids"] == expected, text
    assert again.create_tokenizer().encode(text).ids == expected, text
  return found


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip_accents", [None, True, False])
def test_casing_and_accents_are_followed(
  model, tmp_path, lowercase, strip_accents
):
  """By tokenizer_config.json beside a vocab.txt, and saved by transformers."""
  settings = {"do_lower_case": lowercase, "strip_accents": strip_accents}
  folder = copy(model, tmp_path / "in", tokenizer_config_json=settings)
  assert_same_ids(folder)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  saved = copy(model, tmp_path / "saved", vocab=None)
  tokenizer.save_pretrained(saved)
  assert_same_ids(saved)


def test_added_tokens_are_followed(model, tmp_path):
  """From each of the four files that may name them."""
  last = len(VOCAB)
  token = {
    **{"content": "<url>", "special": False, "normalized": True},
    **{"lstrip": False, "rstrip": False, "single_word": False},
  }
  special = token | {"content": "[E1]", "special": True, "normalized": False}
  decoder = {str(last): token, str(last + 1): special}
  added = {"<url>": last, "[E1]": last + 1}
  saved = tokenizer_json()
  saved["added_tokens"] += [
    token | {"id": last},
    special | {"id": last + 1},
  ]
  for name, files in {
    "added": {"added_tokens_json": added},
    "decoder": {"tokenizer_config_json": {"added_tokens_decoder": decoder}},
    "tokenizer": {
      "tokenizer_json": saved,
      "tokenizer_config_json": {"added_tokens_decoder": decoder},
    },
  }.items():
    found = assert_same_ids(copy(model, tmp_path / name, **files))
    assert found.vocab[last : last + 2] == ["<url>", "[E1]"], name
    ids = found.create_tokenizer().encode("the <url>").ids
    assert ids == [2, VOCAB.index("the"), last, 3]


def test_a_special_token_of_the_vocabulary_is_found_in_text(model, tmp_path):
  vocab = ["[E1]" if token == "river" else token for token in VOCAB]
  folder = copy(
    model,
    tmp_path / "in",
    vocab,
    special_tokens_map_json={"additional_special_tokens": ["[E1]", "[E2]"]},
  )
  found = pretrained.load_init(folder)
  ids = found.create_tokenizer().encode("the [E1]").ids
  assert ids == [2, VOCAB.index("the"), VOCAB.index("river"), 3]
  assert any("'[E2]' without an id" in note for note in found.notes)


REFUSED = {
  "japanese": (
    {"tokenizer_config_json": {"tokenizer_class": "BertJapaneseTokenizer"}},
    "tokenizer_class is 'BertJapaneseTokenizer' in .*tokenizer_config.json",
  ),
  "kobert": (
    {"tokenizer_config_json": {"tokenizer_class": "KoBertTokenizer"}},
    "KoBertTokenizer",
  ),
  "own code": (
    {"tokenizer_config_json": {"auto_map": {"AutoTokenizer": ["a.B", None]}}},
    "a tokenizer of its own code",
  ),
  "no normalizer": (
    {"tokenizer_json": tokenizer_json(normalizer=None)},
    "tokenizer.json cuts .* expected .*, as BERT's tokenizer does",
  ),
  "NFC": (
    {"tokenizer_json": tokenizer_json(normalizer=as_object(normalizers.NFC()))},
    "tokenizer.json cuts",
  ),
  "words at spaces": (
    {
      "tokenizer_json": tokenizer_json()
      | {"pre_tokenizer": as_object(pre_tokenizers.WhitespaceSplit())}
    },
    "tokenizer.json cuts",
  ),
  "Chinese joined": (
    {"tokenizer_json": tokenizer_json(normalizer={"handle_chinese_chars": 0})},
    "can't be read|cuts",
  ),
  "Chinese joined, said": (
    {"tokenizer_config_json": {"tokenize_chinese_chars": False}},
    "tokenize_chinese_chars is False",
  ),
  "prefix": (
    {"tokenizer_json": tokenizer_json(model={"continuing_subword_prefix": ""})},
    "continuing_subword_prefix of .* is ''; expected '##'",
  ),
  "unigram": (
    {"tokenizer_json": tokenizer_json(model={"type": "Unigram"})},
    "type of .* is 'Unigram'; expected 'WordPiece'",
  ),
  "another pair": (
    {
      "tokenizer_json": tokenizer_json()
      | {
        "post_processor": {
          "type": "BertProcessing",
          "sep": ["[PAD]", 0],
          "cls": ["[CLS]", 2],
        }
      }
    },
    "writes a pair as",
  ),
  "other special tokens": (
    {"special_tokens_map_json": {"cls_token": {"content": "<s>"}}},
    "cls_token is '<s>'",
  ),
  "casing as text": (
    {"tokenizer_config_json": {"do_lower_case": "false"}},
    "do_lower_case is 'false' in .*expected true or false",
  ),
  "length as text": (
    {"tokenizer_config_json": {"model_max_length": "512"}},
    "model_max_length is '512' in .*expected a whole number",
  ),
  "length NaN": (
    {"tokenizer_config_json": {"model_max_length": float("nan")}},
    "model_max_length is nan",
  ),
  "id as text": (
    {"added_tokens_json": {"<url>": "99"}},
    "has the id '99' for '<url>'",
  ),
  "id taken": (
    {"added_tokens_json": {"<url>": 7}},
    "has the id 7 for .* and '<url>'",
  ),
  "id beyond the rows": (
    {"added_tokens_json": {"<url>": 10**12}},
    "expected at most",
  ),
  "token without content": (
    {"tokenizer_config_json": {"added_tokens_decoder": {"7": "x"}}},
    "has an added token 'x'",
  ),
  "not an object": ({"tokenizer_json": [1]}, "is a list; expected an object"),
  "no tokenizer": (
    {"tokenizer_json": tokenizer_json(pre_tokenizer={"type": "New"})},
    "can't be read",
  ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_followed_is_refused_by_name(model, tmp_path, name):
  files, message = REFUSED[name]
  folder = copy(model, tmp_path / "in", **files)
  with pytest.raises(UserError, match=message) as error:
    pretrained.load_init(folder)
  assert "\n" not in str(error.value)


def test_a_cased_tokenizer_json_is_followed_and_told(model, tmp_path):
  """transformers 5 does not ask it, and would lower-case."""
  folder = copy(
    model, tmp_path / "in", vocab=None, tokenizer_json=tokenizer_json(False)
  )
  found = pretrained.load_init(folder)
  assert not found.lowercase
  assert any("taken to be cased" in note for note in found.notes)
  settings = {"do_lower_case": False}
  said = copy(
    model,
    tmp_path / "said",
    tokenizer_json=tokenizer_json(False),
    tokenizer_config_json=settings,
  )
  assert_same_ids(said)


def test_settings_count_more_than_a_contradicting_tokenizer_json(
  model, tmp_path
):
  folder = copy(
    model,
    tmp_path / "in",
    tokenizer_json=tokenizer_json(True),
    tokenizer_config_json={"do_lower_case": False},
  )
  assert not assert_same_ids(folder).lowercase


def test_capitals_that_lower_casing_never_finds_are_told(model, tmp_path):
  found = pretrained.load_init(copy(model, tmp_path / "silent"))
  assert found.lowercase
  (note,) = [n for n in found.notes if n.startswith("warning")]
  assert "'River'" in note
  assert "no file says otherwise" in note
  cased = {"tokenizer_config_json": {"do_lower_case": False}}
  found = pretrained.load_init(copy(model, tmp_path / "cased", **cased))
  assert not [n for n in found.notes if n.startswith("warning")]


def test_a_broken_vocab_txt_does_not_replace_a_whole_tokenizer_json(
  model, tmp_path
):
  for name, vocab in (("cut", VOCAB[:9]), ("doubled", VOCAB[:3] * 2)):
    folder = copy(
      model, tmp_path / name, vocab, tokenizer_json=tokenizer_json()
    )
    found = pretrained.load_init(folder)
    assert found.vocab[: len(VOCAB)] == VOCAB
    assert any("vocab.txt has other tokens" in note for note in found.notes)


def test_a_broken_vocab_txt_alone_is_told(model, tmp_path):
  folder = copy(model, tmp_path / "in", [*VOCAB, "river"])
  (note,) = [n for n in pretrained.load_init(folder).notes if "twice" in n]
  assert f"'river' in line {VOCAB.index('river') + 1}" in note
  (folder / "vocab.txt").write_text("")
  with pytest.raises(UserError, match=r"lacks \[PAD\]"):
    pretrained.load_init(folder)
  (folder / "vocab.txt").write_bytes("caf\u00e9\n".encode("latin-1"))
  with pytest.raises(UserError, match=r"line 1 is not UTF-8 \(byte 0xe9\)"):
    pretrained.load_init(folder)
  pieces = [*SPECIAL_TOKENS, "\u2581the", "\u2581river", "s"]
  (folder / "vocab.txt").write_text("\n".join(pieces))
  with pytest.raises(UserError, match="SentencePiece's pieces"):
    pretrained.load_init(folder)


def test_a_vocabulary_cut_in_half_is_refused(tmp_path):
  words = [f"word{i}" for i in range(4_000)]
  vocab = tiny_bert.make_vocab(words)
  tiny_bert.save(tmp_path, transformers.BertModel, vocab)
  (tmp_path / "vocab.txt").write_text("\n".join(vocab[:2_000]))
  with pytest.raises(UserError, match="has 2000 tokens; expected about 4089"):
    pretrained.load_init(tmp_path)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalizes", [True, False])
def test_a_sentence_transformers_folder_says_how_vectors_are_made(
  model, tmp_path, pooling, normalizes
):
  from sentence_transformers import SentenceTransformer
  from sentence_transformers.sentence_transformer import modules

  encoder = modules.Transformer(str(copy(model, tmp_path / "in")))
  parts = [encoder, modules.Pooling(24, pooling)]
  theirs = SentenceTransformer(
    modules=parts + [modules.Normalize()] * normalizes
  )
  theirs.max_seq_length = 20
  theirs.save(str(tmp_path / "out"))
  found = pretrained.load_init(tmp_path / "out")
  assert (found.modules.pooling, found.modules.normalizes) == (
    pooling,
    normalizes,
  )
  assert found.max_length == 20


def test_sentence_modules_of_earlier_versions_are_read(model, tmp_path):
  folder = tmp_path / "in"
  folder.mkdir()
  copy(
    model,
    folder / "0_Transformer",
    sentence_bert_config_json={"max_seq_length": 16, "do_lower_case": False},
  )
  path = "sentence_transformers.models."
  kinds = ["Transformer", "Pooling"]

  def write(kinds, pooling):
    modules = [
      {"idx": i, "path": f"{i}_{kind}", "type": path + kind}
      for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))

  write(
    kinds, {"pooling_mode_mean_tokens": True, "word_embedding_dimension": 8}
  )
  found = pretrained.load_init(folder)
  assert (found.modules.pooling, found.max_length) == ("mean", 16)
  write([*kinds, "Dense"], {"pooling_mode_mean_tokens": True})
  found = pretrained.load_init(folder)
  assert found.modules.pooling is None
  assert any("Pooling, Dense, which is left out" in n for n in found.notes)
  write(kinds, {"pooling_mode_max_tokens": True})
  assert pretrained.load_init(folder).modules.pooling is None
  (folder / "modules.json").write_text('[{"path": "../x", "type": "a.b"}]')
  with pytest.raises(UserError, match="expected one within"):
    pretrained.load_init(folder)
