"""Finds out whether this process is one of several, from its environment.

On a TPU VM JAX asks the slice's metadata server; under Slurm's `srun` and Open
MPI's `mpirun` it reads their variables. Elsewhere three environment variables
say it:

    JAX_COORDINATOR_ADDRESS=HOST:PORT  where process 0 listens
    JAX_NUM_PROCESSES=4
    JAX_PROCESS_ID=0

Where none of these applies, the process is alone.
"""

import os

import jax

from bert_jax.errors import UserError

VARIABLES = (
  "JAX_COORDINATOR_ADDRESS",
  "JAX_NUM_PROCESSES",
  "JAX_PROCESS_ID",
)


def given():
  """Returns (address, count, index) from the variables, or three None.

  Raises:
    UserError: some of them are not set, or no numbers.
  """
  values = [os.environ.get(name) for name in VARIABLES]
  if not any(values):
    return None, None, None
  missing = [
    name for name, value in zip(VARIABLES, values, strict=True) if not value
  ]
  address, count, index = values
  if missing or not (count.isdigit() and index.isdigit()):
    seen = ", ".join(map(str, values))
    raise UserError(
      f"the environment has {', '.join(VARIABLES)} = {seen}; expected all of "
      "them or none, such as 10.0.0.1:8482, 4 and 0"
    )
  if int(index) >= int(count):
    raise UserError(
      f"JAX_PROCESS_ID is {index}; expected less than JAX_NUM_PROCESSES = "
      f"{count}"
    )
  return address, int(count), int(index)


def is_on_tpu():
  """Tells whether JAX will use a TPU, without asking for its devices.

  On a TPU VM, JAX puts it among its platforms when it is imported.
  """
  return "tpu" in (jax.config.jax_platforms or "")


def is_task_of_several():
  """Tells whether a scheduler started this process as one of several.

  `jax.distributed.initialize` then finds address, count and index. A batch
  script of Slurm runs once, outside of any job step, and has SLURM_NTASKS but
  no SLURM_STEP_NODELIST.
  """
  is_step = "SLURM_STEP_NODELIST" in os.environ
  counts = (
    os.environ.get("SLURM_NTASKS") if is_step else None,
    os.environ.get("OMPI_COMM_WORLD_SIZE"),
  )
  return any(int(count or 1) > 1 for count in counts)
