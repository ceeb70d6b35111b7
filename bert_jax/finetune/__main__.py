"""Fine-tunes a BERT on a task; resumes whatever the workdir holds.

    python -m bert_jax.finetune --config=configs/finetune_glue.py:sst2 \\
      --workdir=W --init=H_or_W [--output=H] [--seeds=5]

`--init` is a workdir of bert_jax.train, a Hugging Face folder or a TensorFlow
checkpoint. The workdir keeps the model that is best by the task's metric in
`model/`, a Hugging Face folder, its predictions on the held-out rows, and the
metrics of every evaluation. With --seeds=N there are N runs, in
<workdir>/seed_0 to seed_<N-1>, and the mean and the standard deviation of what
each of them reached is in <workdir>/results.json. `--output` gets a copy of
the (best) model.

On a slice of several hosts every host runs this command; the batches and the
results are those of one host.
"""

import sys

from absl import flags

from bert_jax import command
from bert_jax.distributed import rehearsal
from bert_jax.errors import UserError
from bert_jax.finetune import seeds
from bert_jax.finetune.config import default_config


def main(argv):
  """Runs the command."""
  del argv
  values = flags.FLAGS
  if not values.init:
    raise UserError(
      "--init is missing; expected a workdir of bert_jax.train, a Hugging Face "
      "folder or a TensorFlow checkpoint"
    )
  config, workdir = command.config_and_workdir()
  rehearsal.rehearse_if_asked()
  sys.exit(
    seeds.finetune_on_all_hosts(
      config, workdir, values.init, values.seeds, values.output
    )
  )


if __name__ == "__main__":
  command.define_config_flags()
  flags.DEFINE_string("init", None, "Model to start from.")
  flags.DEFINE_string("output", None, "Folder for a copy of the best model.")
  flags.DEFINE_integer("seeds", None, "Number of runs.", lower_bound=1)
  rehearsal.define_flags()
  command.run(main, default_config)
