"""A random BERT in a Hugging Face folder, as somebody else would write it."""

import torch
import transformers

from bert_jax.data.tokenization import SPECIAL_TOKENS

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"
SETTINGS = {
  "hidden_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 3,
  "intermediate_size": 40,
  "max_position_embeddings": 64,
}


def make_vocab(words=()):
  """Returns a vocabulary of single characters and some words."""
  return [
    *SPECIAL_TOKENS,
    *LETTERS,
    *(f"##{letter}" for letter in LETTERS),
    *words,
  ]


def save(folder, model_class, vocab, seed=0, **settings):
  """Writes a model with random weights, biases and scales included.

  Args:
    folder: `pathlib.Path`.
    model_class: class of transformers.
    vocab: list of str.
    seed: int.
    **settings: of its `BertConfig`.

  Returns:
    the torch model, in evaluation mode.
  """
  torch.manual_seed(seed)
  config = transformers.BertConfig(vocab_size=len(vocab), **SETTINGS | settings)
  model = model_class(config).eval()
  with torch.no_grad():
    for weight in model.parameters():
      weight.add_(0.1 * torch.randn_like(weight))
  model.save_pretrained(folder)
  (folder / "vocab.txt").write_text("".join(f"{t}\n" for t in vocab))
  return model
