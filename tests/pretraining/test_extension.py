"""More positions for a model that is trained already."""

import json

import numpy as np
import pytest
import transformers
from etils import epath

from bert_jax.config import default_config
from bert_jax.data.tokenization import SPECIAL_TOKENS, token_dtype
from bert_jax.distributed.hosts import Hosts
from bert_jax.errors import UserError
from bert_jax.model.bert_config import BertConfig
from bert_jax.pretraining import extension, initialization
from bert_jax.weights.pretrained import Pretrained
from tests.weights import tiny_bert


def create_pretrained(num_positions=8):
  rng = np.random.default_rng(0)
  table = rng.normal(size=(num_positions, 4)).astype(np.float32)
  config = BertConfig(
    vocab_size=5,
    hidden_size=4,
    num_attention_heads=1,
    max_position_embeddings=num_positions,
  )
  params = {"bert": {"embeddings": {"position_embeddings": table}}}
  vocab = list(SPECIAL_TOKENS)
  return table, Pretrained("x", config, params, vocab, True, num_positions)


def test_twice_the_positions_are_the_old_ones_twice():
  table, pretrained = create_pretrained()
  extended = extension.extend_positions(pretrained, 16)
  found = extended.params["bert"]["embeddings"]["position_embeddings"]
  np.testing.assert_allclose(found, np.concatenate([table, table]), atol=1e-6)
  assert extended.bert_config.max_position_embeddings == 16
  assert extended.max_length == 16
  assert extended.notes == ("positions 0 to 7 are copied, 8 to 15 repeat them",)


def test_another_number_of_positions_is_interpolated_and_told():
  table, pretrained = create_pretrained()
  extended = extension.extend_positions(pretrained, 11)
  found = extended.params["bert"]["embeddings"]["position_embeddings"]
  np.testing.assert_array_equal(found[:8], table)
  np.testing.assert_allclose(found[8], table[0])
  np.testing.assert_allclose(found[9], (table[3] + table[4]) / 2, atol=1e-6)
  np.testing.assert_allclose(found[10], table[7])
  assert extended.notes[-1].endswith("8 to 10 are interpolated from them")
  # The source is left alone.
  assert pretrained.params["bert"]["embeddings"]["position_embeddings"] is table


def test_fewer_positions_and_kept_moments_are_refused():
  _, pretrained = create_pretrained()
  assert extension.extend_positions(pretrained, 0) is pretrained
  with pytest.raises(UserError, match="has 8 positions; expected more"):
    extension.extend_positions(pretrained, 8)
  with pytest.raises(UserError, match="no moments for the positions"):
    initialization.create_init("x", 0, "keep", 16)
  with pytest.raises(UserError, match="--extend_positions=-1"):
    initialization.create_init("x", 0, "reset", -1)
  with pytest.raises(UserError, match="expected --init too"):
    initialization.create_init("", 0, "reset", 16)


def test_a_model_that_takes_no_pairs_is_refused(tmp_path):
  folder = tmp_path / "model"
  vocab = tiny_bert.make_vocab()
  tiny_bert.save(folder, transformers.BertModel, vocab, type_vocab_size=1)
  init = initialization.create_init(str(folder))
  with pytest.raises(UserError, match="one token type"):
    initialization.begin(
      default_config(), epath.Path(tmp_path / "run"), init, Hosts()
    )
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("strip_accents", [None, True, False])
def test_the_corpus_is_prepared_with_the_accents_of_the_model(
  tmp_path, strip_accents
):
  folder, workdir = tmp_path / "model", epath.Path(tmp_path / "run")
  tiny_bert.save(folder, transformers.BertModel, tiny_bert.make_vocab())
  # True is what None means in lower-cased text.
  settings = {
    "strip_accents": strip_accents,
    "do_lower_case": strip_accents is not True,
  }
  (folder / "tokenizer_config.json").write_text(json.dumps(settings))
  init = initialization.create_init(str(folder))
  asked = default_config()
  asked.corpus.strip_accents = not strip_accents
  for given in (init, None):  # the second time from what the run keeps
    config, _ = initialization.begin(asked, workdir, given, Hosts())
    assert config.corpus.strip_accents is strip_accents


def test_the_model_decides_on_the_larger_number_of_positions(tmp_path):
  folder, workdir = tmp_path / "model", epath.Path(tmp_path / "run")
  tiny_bert.save(folder, transformers.BertModel, tiny_bert.make_vocab())
  init = initialization.create_init(str(folder), extend_positions=96)
  config, _ = initialization.begin(default_config(), workdir, init, Hosts())
  assert config.model.max_position_embeddings == 96
  # Also when the run is started again, without --init.
  config, kept = initialization.begin(default_config(), workdir, None, Hosts())
  assert config.model.max_position_embeddings == 96
  assert kept.extend_positions == 96


def test_token_ids_take_four_bytes_where_two_are_too_few():
  for vocab_size in (100, 65_536, 65_537, 119_547):
    largest = np.array(vocab_size - 1)
    assert largest.astype(token_dtype(vocab_size)) == largest
  assert token_dtype(65_536) == "uint16"
