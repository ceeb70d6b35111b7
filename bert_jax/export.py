"""Writes a checkpoint as a folder that every Hugging Face tool loads.

    python -m bert_jax.export --workdir=W --output=H [--step=N|best] \\
      [--heads=pretraining|mlm|encoder] [--with_optimizer]

`pretraining` holds everything and is the default; transformers 5 warns of
tensors that a class does not use, so `mlm` (fill-mask) and `encoder`
(sentence-transformers, feature extraction) leave out what theirs does not.
`--with_optimizer` adds Adam's moments, in optimizer.safetensors.
"""

from absl import flags

from bert_jax import command
from bert_jax.pretraining import exporting
from bert_jax.weights import hf


def main(argv):
  """Runs the command."""
  del argv
  output, heads = command.path("output"), flags.FLAGS.heads
  step = command.checkpoint_step()
  step = exporting.export(
    command.workdir(), output, heads, step, flags.FLAGS.with_optimizer
  )
  print(
    f"export: step {step:,} ({heads}) is in {output}; load it with "
    f"transformers' {hf.HEADS[heads][0]}.from_pretrained"
  )


if __name__ == "__main__":
  command.define_checkpoint_flags()
  flags.DEFINE_string("output", None, "Folder to write.")
  flags.DEFINE_enum("heads", "pretraining", list(hf.HEADS), "What to keep.")
  flags.DEFINE_bool("with_optimizer", False, "Whether to add Adam's moments.")
  command.run(main)
