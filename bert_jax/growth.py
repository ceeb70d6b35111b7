"""Estimates how a step's time and memory scale with batch, length and chips.

    python -m bert_jax.growth --config=configs/bert_base.py \\
        --topology=v5e:4x4 --output=docs/growth.png

Compiles phase 1 with a quarter to sixteen times the batch, half to four times
the length, a quarter to twice the layers, and on 4 to 256 chips of the same
generation, changing one of these at a time. Prints tables, names the part of
the step to blame where growth is not linear, and plots both. Compiles thirteen
programs; of BERT-base some two minutes of a core each, twice that with twice
the layers.
"""

from absl import flags

from bert_jax import command
from bert_jax.planning import growth


def main(argv):
  """Runs the command."""
  del argv
  print(
    growth.measure_growth(
      command.config(), flags.FLAGS.topology or "", flags.FLAGS.output
    )
  )


if __name__ == "__main__":
  command.define_config_flag()
  flags.DEFINE_string("topology", None, "Slice, such as v5e:4x4.")
  flags.DEFINE_string("output", None, "PNG file to draw; none by default.")
  command.run(main)
