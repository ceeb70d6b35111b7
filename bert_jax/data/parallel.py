"""Work on all cores, by processes that end with the one that feeds them."""

import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
import sys
import threading
import types


def num_workers():
  """Returns how many cores this process may use."""
  return len(os.sched_getaffinity(0))


def ordered_map(function, items):
  """Maps items on all cores, results in order, few items in memory.

  Args:
    function: importable by name, from a module that is quick to import.
    items: iterable of what can be pickled.

  Yields:
    What the function returns.
  """
  workers = num_workers()
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(
    workers, context, initializer=_end_with_parent
  ) as pool:
    waiting = collections.deque()
    for item in items:
      with _without_main():
        waiting.append(pool.submit(function, item))
      if len(waiting) > 3 * workers:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()


@contextlib.contextmanager
def _without_main():
  """Keeps workers from importing the command that starts them.

  A spawned process imports its parent's main module, which for a command is
  jax and all: 1.2 s of a processor for each worker.
  """
  main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("_")
  try:
    yield
  finally:
    sys.modules["__main__"] = main


def _end_with_parent():
  """Ends a worker when the process that feeds it is killed."""
  parent = multiprocessing.parent_process()

  def wait():
    parent.join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()
