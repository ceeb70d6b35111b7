"""Shows how time and memory of a step grow, and where not linearly.

    python -m bert_jax.growth --config=configs/bert_base.py \\
        --topology=v5e:4x4 --output=docs/growth.png

Compiles phase 1 again and again, with a quarter to sixteen times the batch,
half to four times the length, a quarter to twice the layers, and on 4 to 256
chips of the same generation; everything else stays. Prints tables and what
made each step from point to point more or less than linear, and draws both.
Thirteen programs; of BERT-base some two minutes of a core each, twice that
with twice the layers.
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
