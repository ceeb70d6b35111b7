"""The small commands start fast: nothing heavy is imported that few need."""

from tests import commands

HEAVY = ("orbax", "tensorflow", "torch", "transformers", "sklearn", "seqeval")
PROGRAM = f"""
import sys
import bert_jax.finetune.predict
from bert_jax.inference import embedding, fillings
print([name for name in {HEAVY} if name in sys.modules])
"""


def test_the_small_commands_import_nothing_heavy():
  """Checkpoints take orbax, a second, which only workdirs need."""
  assert commands.run_program(PROGRAM).stdout.strip() == "[]"
