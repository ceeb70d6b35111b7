"""Raw text to vocabulary and token shards, with a report on the corpus.

    python -m bert_jax.prepare --config=configs/bert_base.py --workdir=W \\
      --config.corpus.source='texts/*.txt.gz'

Killed at any moment and started again, it goes on with the chunk it was at and
ends in the same bytes.

--show=5 prints the first examples of each phase as the model sees them;
--against=FILE reports which rows of an evaluation set occur in the corpus.
On many machines with a shared disk, each runs with --part=0/16 to 15/16; then
the same command without --part merges what they wrote.
"""

import re

from absl import flags

from bert_jax import command
from bert_jax.data.overlap import print_overlap
from bert_jax.errors import UserError
from bert_jax.pretraining import initialization, session, show


def main(argv):
  """Runs the command."""
  del argv
  config, workdir = command.config_and_workdir()
  init = initialization.create_init(*command.init_flags())
  if flags.FLAGS.part:
    session.prepare_part(config, workdir, *_part(flags.FLAGS.part))
    return
  session.prepare(config, workdir, init)
  if flags.FLAGS.show:
    for text in show.describe_examples(config, workdir, flags.FLAGS.show):
      print(f"\n{text}")
  if flags.FLAGS.against:
    print_overlap(config, workdir, flags.FLAGS.against)


def _part(text):
  """Returns (number, number of parts) of "0/16"."""
  match = re.fullmatch(r"(\d+)/(\d+)", text)
  if not match or int(match[1]) >= int(match[2]):
    raise UserError(f"--part is {text!r}; expected such as 0/16 to 15/16")
  return int(match[1]), int(match[2])


def define_flags():
  """Defines `--show=N --against=FILE --part=I/N`."""
  flags.DEFINE_integer(
    "show", 0, "Examples of each phase to print.", lower_bound=0
  )
  flags.DEFINE_string(
    "against", None, "Evaluation set, a .txt or .jsonl (.gz) file of rows."
  )
  flags.DEFINE_string(
    "part", None, "0/16 to 15/16: encode this part only, without merging."
  )


if __name__ == "__main__":
  command.define_config_flags()
  command.define_init_flags()
  define_flags()
  command.run(main)
