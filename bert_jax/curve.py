"""The learning curve of a run, as a PNG and as text.

    python -m bert_jax.curve --workdir=W

Writes <workdir>/curve.png and prints the same curve for the terminal.
"""

from bert_jax import command
from bert_jax.pretraining import learning_curve


def main(argv):
  """Runs the command."""
  del argv
  print(learning_curve.draw(command.workdir()))


if __name__ == "__main__":
  command.define_workdir_flag()
  command.run(main)
