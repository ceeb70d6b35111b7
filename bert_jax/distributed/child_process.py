"""Calls in a process of their own, which ends with the one that started it."""

import concurrent.futures
import multiprocessing
import os
import signal
import sys
import threading
import time

_PERIOD_SECONDS = 0.5


def call_alone(function, *arguments, log=None):
  """Calls a function in a new process, which takes its memory along.

  Args:
    function: at the top of a module, since the new process imports it there.
    *arguments: its arguments.
    log: path for the standard error of the process; by default it is shared
      with this one.

  Returns:
    what the function returns.

  Raises:
    ChildProcessError: the process crashed, or was killed as happens for memory.
  """
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(
    1, context, _begin, (os.getpid(), log)
  ) as process:
    try:
      return process.submit(function, *arguments).result()
    except concurrent.futures.process.BrokenProcessPool:
      raise ChildProcessError("its process was killed or crashed") from None


def end_with(parent):
  """Ends this process soon after another one, whatever it is doing then.

  Args:
    parent: id of the process that started this one.
  """

  def wait():
    while os.getppid() == parent:
      time.sleep(_PERIOD_SECONDS)
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def _begin(parent, log):
  # An interrupt of the parent must end a call that runs in C++ too.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  end_with(parent)
  if log:
    os.dup2(os.open(log, os.O_WRONLY), sys.stderr.fileno())
