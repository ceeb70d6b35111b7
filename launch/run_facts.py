"""Prints what launch/pod.sh must know of a run; refuses wrong settings.

    python launch/run_facts.py --config=C --config.a.b=value

Lines "KEY VALUE": `steps`, the steps of both phases, and `vocab_file`, the
vocabulary that the run is given (nothing where it trains one).
"""

from bert_jax import command
from bert_jax.config import num_train_steps, validate


def main(argv):
  """Runs the command."""
  del argv
  config = command.config()
  validate(config)
  print(f"steps {num_train_steps(config)}")
  print(f"vocab_file {config.corpus.vocab_file}")


if __name__ == "__main__":
  command.define_config_flag()
  command.run(main)
