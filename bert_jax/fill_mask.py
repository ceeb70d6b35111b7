"""Fills the [MASK] of a sentence with any pretrained model, without torch.

python -m bert_jax.fill_mask --model=H --text='The [MASK] of the people.'
"""

from absl import flags

from bert_jax import command
from bert_jax.inference import fillings


def main(argv):
  """Runs the command."""
  del argv
  model, texts = flags.FLAGS.model, flags.FLAGS.text
  for text, found in fillings.fill_texts(model, texts):
    print(text)
    for token, probability in found:
      print(f"  {probability:6.1%}  {token}")


if __name__ == "__main__":
  flags.DEFINE_string("model", None, "Exported folder, workdir or any BERT.")
  flags.DEFINE_multi_string("text", [], "Text with a [MASK].")
  command.run(main)
