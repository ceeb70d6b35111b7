"""Finds one step after which all processes of a run stop for a signal.

On a preemption one host gets SIGTERM, and every host must save the same step.
JAX's preemption sync point finds that step: the process with the signal tells
the coordination service, and all processes stop after the latest step that any
of them has begun.
"""

import os
import signal

from jax._src import distributed  # the sync point is begun by no public name
from jax.experimental import multihost_utils

# JAX's sync point listens to this signal alone.
_PREEMPTION = signal.SIGTERM


def make_stopping(hosts):
  """Listens to SIGTERM and SIGINT from now on, instead of ending by them.

  A second signal ends a process that is alone; one of several processes goes on
  to the common step.

  Args:
    hosts: `Hosts`; all of its processes call this.

  Returns:
    function that returns the number of the signal to stop for, or None. To be
    called at every step, after it was dispatched; it gives all processes the
    same answer.
  """
  return _listen_alone() if hosts.is_alone else _listen_together(hosts)


def _listen_alone():
  caught = []

  def note(number, frame):
    del frame
    caught.append(number)
    signal.signal(number, signal.SIG_DFL)

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, note)
  return lambda: caught[0] if caught else None


def _listen_together(hosts):
  # Only now, since it takes SIGTERM away from Python: before the first step a
  # signal ends the process, and nobody asks for a common step.
  if distributed.global_state.preemption_sync_manager is None:
    distributed.global_state.initialize_preemption_sync_manager()
  signal.signal(
    signal.SIGINT, lambda number, frame: os.kill(os.getpid(), _PREEMPTION)
  )

  def stopping():
    reached = multihost_utils.reached_preemption_sync_point(hosts.count_step())
    return _PREEMPTION if reached else None

  return stopping
