"""Processes that a scheduler started find one another by its variables."""

import os
import random
import subprocess
import sys

_PROGRAM = """
import jax
jax.config.update("jax_platforms", "cpu")
from bert_jax.distributed.joining import joined
with joined() as hosts:
  print(hosts.gather(hosts.index), len(hosts.names), flush=True)
"""


def _start(**variables):
  return subprocess.Popen(
    [sys.executable, "-c", _PROGRAM],
    env=os.environ | {k: str(v) for k, v in variables.items()},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _end(process):
  output, errors = process.communicate(timeout=60)
  assert process.returncode == 0, errors
  return output


def test_tasks_of_slurm_are_one_run():
  """As `srun --ntasks=2` starts them, by its documented variables."""
  job = random.randrange(4096)  # says the port
  tasks = [
    _start(
      SLURM_JOB_ID=job,
      SLURM_STEP_NODELIST="localhost",
      SLURM_NTASKS=2,
      SLURM_PROCID=index,
      SLURM_LOCALID=index,
    )
    for index in range(2)
  ]
  assert [_end(task) for task in tasks] == ["[0, 1] 2\n", ""]


def test_a_batch_script_of_slurm_runs_alone():
  """It has the job's variables, but no step of several tasks."""
  script = _start(SLURM_JOB_ID=1, SLURM_NTASKS=2, SLURM_PROCID=0)
  assert _end(script) == "[0] 1\n"
