"""Which of how many processes this one is, by its environment.

On a TPU VM the metadata of the slice says it, under Slurm's `srun` and Open
MPI's `mpirun` their variables. Elsewhere three environment variables make a
process one of several:

    JAX_COORDINATOR_ADDRESS=HOST:PORT  where process 0 listens
    JAX_NUM_PROCESSES=4
    JAX_PROCESS_ID=0

Without any of these there is one process.
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
  """Returns (address, count, index) of the environment, or three None."""
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

  `jax.distributed.initialize` then finds out the rest. In a batch script of
  Slurm's, which runs once, there is no step and so no list of its nodes.
  """
  is_step = "SLURM_STEP_NODELIST" in os.environ
  counts = (
    os.environ.get("SLURM_NTASKS") if is_step else None,
    os.environ.get("OMPI_COMM_WORLD_SIZE"),
  )
  return any(int(count or 1) > 1 for count in counts)
