"""Prints how many steps a run has, and refuses settings that are wrong.

python launch/num_steps.py --config=C --config.a.b=value
"""

from bert_jax import command
from bert_jax.config import num_train_steps, validate


def main(argv):
  """Runs the command."""
  del argv
  config = command.config()
  validate(config)
  print(num_train_steps(config))


if __name__ == "__main__":
  command.define_config_flag()
  command.run(main)
