"""The architecture of a BERT, by Hugging Face's names."""

import dataclasses

from flax import linen as nn

# The embedding table is padded to a multiple of a TPU's 128 lanes.
VOCAB_MULTIPLE = 128


@dataclasses.dataclass(frozen=True)
class BertConfig:
  """Architecture, by Hugging Face's names; the defaults are BERT-base.

  Attributes:
    vocab_size: tokens in the vocabulary.
    hidden_size: D, a multiple of the head count.
    num_hidden_layers: encoder blocks.
    num_attention_heads: N.
    intermediate_size: F.
    hidden_act: "gelu" (erf) or "gelu_new" (tanh, as the original code).
    hidden_dropout_prob: after the embeddings and both sublayers.
    attention_probs_dropout_prob: on the attention probabilities.
    classifier_dropout: before the output layer of a fine-tuned model; None
      takes hidden_dropout_prob.
    max_position_embeddings: longest sequence.
    type_vocab_size: T.
    initializer_range: sigma of the truncated normal, before the cut.
    layer_norm_eps: added to the variance.
    dtype: of the layers' arithmetic; parameters, LayerNorm statistics,
      softmax and logits are float32 whatever it says.
    remat: whether a block's activations are recomputed in the backward pass
      instead of stored.
  """

  vocab_size: int
  hidden_size: int = 768
  num_hidden_layers: int = 12
  num_attention_heads: int = 12
  intermediate_size: int = 3072
  hidden_act: str = "gelu"
  hidden_dropout_prob: float = 0.1
  attention_probs_dropout_prob: float = 0.1
  classifier_dropout: float | None = None
  max_position_embeddings: int = 512
  type_vocab_size: int = 2
  initializer_range: float = 0.02
  layer_norm_eps: float = 1e-12
  dtype: str = "float32"
  remat: bool = False

  @property
  def output_dropout_prob(self):
    """Dropout before the output layer of a fine-tuned model."""
    if self.classifier_dropout is None:
      return self.hidden_dropout_prob
    return self.classifier_dropout

  @property
  def head_size(self):
    """H, hidden size of one attention head."""
    return self.hidden_size // self.num_attention_heads

  @property
  def padded_vocab_size(self):
    """Rows of the embedding table, padding included."""
    return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

  @property
  def kernel_init(self):
    """Initializer of every matrix: a normal cut at two sigma.

    The cut is not corrected for, so the standard deviation comes out as 0.88
    of `initializer_range`, as in the original code.
    """
    return nn.initializers.truncated_normal(self.initializer_range)
