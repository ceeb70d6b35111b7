"""classifier_dropout of a config is that of the output layer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.finetune import heads
from bert_jax.model.bert_config import BertConfig

CONFIG = BertConfig(
  vocab_size=8,
  hidden_size=16,
  num_hidden_layers=1,
  num_attention_heads=2,
  intermediate_size=8,
  hidden_dropout_prob=0.0,
  attention_probs_dropout_prob=0.0,
  max_position_embeddings=8,
)


def test_only_the_output_layer_drops_where_only_it_is_asked_to():
  ids = jnp.ones((64, 4), jnp.int32)
  for module_class in (
    heads.BertForSequenceClassification,
    heads.BertForTokenClassification,
  ):
    logits = {}
    for rate in (None, 0.0, 0.75):
      config = dataclasses.replace(CONFIG, classifier_dropout=rate)
      module = module_class(config, 2)

      @jax.jit
      def draw(module=module):
        inputs = (ids, 0 * ids, ids == 1)
        params = module.init(jax.random.key(0), *inputs, deterministic=True)
        rngs = {"dropout": jax.random.key(1)}
        return module.apply(params, *inputs, deterministic=False, rngs=rngs)

      logits[rate] = np.asarray(draw())
    # None takes hidden_dropout_prob, which is 0 here.
    np.testing.assert_array_equal(logits[None], logits[0.0])
    assert np.ptp(logits[0.0], axis=0).max() < 1e-6
    assert np.ptp(logits[0.75], axis=0).max() > 1e-3
