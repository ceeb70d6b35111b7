"""Encodes a corpus' sources as a step of datatrove (local, Slurm or Ray).

    from datatrove.executor import SlurmPipelineExecutor
    from bert_jax.data.writing.datatrove_step import EncodeSources

    SlurmPipelineExecutor([EncodeSources(config, workdir)], tasks=64, ...).run()

Then `python -m bert_jax.prepare` with the same settings merges the parts.
"""

import ml_collections
from datatrove.pipeline.base import PipelineStep

from bert_jax.data.preparation import prepare_part


class EncodeSources(PipelineStep):
  """Encodes every n-th source, n the number of tasks.

  Attributes:
    config: dict of the run's settings.
    workdir: str, its folder, which all tasks share.
  """

  name = "BERT token ids"
  type = "ENCODER"

  def __init__(self, config, workdir):
    """Prepares the step; `config` are the run's settings, a ConfigDict."""
    super().__init__()
    self.config = config.to_dict()
    self.workdir = str(workdir)

  def run(self, data=None, rank=0, world_size=1):
    """Encodes sources `rank`, `rank + world_size`, ...; passes no data on."""
    del data
    config = ml_collections.ConfigDict(self.config)
    prepare_part(config, self.workdir, rank, world_size)
    return ()
