"""Calls a function in a child process, which ends when its parent does."""

import concurrent.futures
import multiprocessing
import os
import signal
import sys
import threading
import time

_PERIOD_SECONDS = 0.5


def call_alone(function, *arguments, log=None):
  """Calls a function in a new process, whose end frees all of its memory.

  Args:
    function: defined at the top level of a module, from which the new process
      imports it.
    *arguments: of the function; they are pickled.
    log: path of a file for the new process's standard error; by default it
      prints to that of this process.

  Returns:
    what the function returns.

  Raises:
    ChildProcessError: the process crashed or was killed, as the system does
      when memory runs out.
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
  """Ends this process within a second after its parent has ended.

  Args:
    parent: process id of the parent.
  """

  def wait():
    while os.getppid() == parent:
      time.sleep(_PERIOD_SECONDS)
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def _begin(parent, log):
  # Python's own handler would wait for a call into C++ to return.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  end_with(parent)
  if log:
    os.dup2(os.open(log, os.O_WRONLY), sys.stderr.fileno())
