"""Writes a checkpoint as a folder that every Hugging Face tool loads.

    python -m bert_jax.export --workdir=W --output=H [--step=N|best|all] \\
      [--heads=pretraining|mlm|encoder] [--with_optimizer]

`pretraining` holds everything and is the default; transformers 5 warns of
tensors that a class does not use, so `mlm` (fill-mask) and `encoder`
(sentence-transformers, feature extraction) leave out what theirs does not.
`--with_optimizer` adds Adam's moments, in optimizer.safetensors.
--step=all writes each checkpoint to a folder <H>/<step>. Damage of the exported
weights is noticed; that of the optimizer's state is only where it is read: by
bert_jax.train and with `--with_optimizer`.

On a slice every host runs this command; host 0 writes H.
"""

from absl import flags

from bert_jax import command
from bert_jax.distributed import rehearsal
from bert_jax.pretraining import exporting
from bert_jax.weights import hf


def main(argv):
  """Runs the command."""
  del argv
  args = (
    command.workdir(),
    command.path("output"),
    flags.FLAGS.heads,
    command.checkpoint_step(may_be_all=True),
    flags.FLAGS.with_optimizer,
  )
  rehearsal.rehearse_if_asked()
  exporting.export_on_first_host(*args)


if __name__ == "__main__":
  command.define_checkpoint_flags()
  flags.DEFINE_string("output", None, "Folder to write.")
  flags.DEFINE_enum("heads", "pretraining", list(hf.HEADS), "What to keep.")
  flags.DEFINE_bool("with_optimizer", False, "Whether to add Adam's moments.")
  rehearsal.define_flags()
  command.run(main)
