"""Predicts new inputs with a fine-tuned model.

    python -m bert_jax.finetune.predict --workdir=W --input=F --output=O
    python -m bert_jax.finetune.predict --init=H --config=C --input=F --output=O

The model is the best one of a workdir of bert_jax.finetune, or any fine-tuned
BERT in a Hugging Face folder; then a config names the task and the columns.
The input is read as the training data was, but labels are not needed. With
--format it is of another form; --format=lines has an example on each line (the
texts of a pair parted by a tab). Where there are labels, the metrics are
printed as JSON. The output has a JSON line for each row; for question answering
it is what SQuAD's script reads.

Several files, --input='docs/part-*.txt' --output=labels.jsonl, are shared among
the processes of a slice, and a start after an interruption goes on with the
files that are not done. The first one's predictions are in
labels-00000-of-00128.jsonl; metrics of all of them are not computed.
"""

from absl import flags

from bert_jax import command
from bert_jax.distributed import rehearsal
from bert_jax.errors import UserError
from bert_jax.finetune import readers
from bert_jax.finetune.config import default_config
from bert_jax.finetune.predict import prediction


def main(argv):
  """Runs the command."""
  del argv
  values = flags.FLAGS
  for name in ("input", "output"):
    if not values[name].value:
      raise UserError(f"--{name} is missing; expected a file")
  if bool(values.workdir) == bool(values.init):
    raise UserError(
      "expected either --workdir, a folder of bert_jax.finetune, or --init, a "
      "fine-tuned Hugging Face folder, with --config"
    )
  config = command.config() if values.init else None
  rehearsal.rehearse_if_asked()
  prediction.predict_files(
    values.workdir or values.init,
    config,
    values.input,
    values.output,
    values.format,
  )


if __name__ == "__main__":
  command.define_config_flags()
  flags.DEFINE_string("init", None, "Fine-tuned Hugging Face folder.")
  flags.DEFINE_string("input", None, "Rows to predict: a file or a pattern.")
  flags.DEFINE_enum(
    "format",
    "",
    ("", "lines", *readers.FORMATS),
    "How they are written; default: as the training data.",
  )
  flags.DEFINE_string("output", None, "File for the predictions.")
  rehearsal.define_flags()
  command.run(main, default_config)
