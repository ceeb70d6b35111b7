"""Maps a function on all cores, in processes that end with this one."""

import collections
import os
import threading
import time

import loky
from loky.backend import get_context


def num_workers():
  """Returns how many cores this process may use."""
  return len(os.sched_getaffinity(0))


def ordered_map(function, items):
  """Maps items on all cores, results in order, few items in memory.

  loky's workers import the function's module and not the command that starts
  them, which would be jax and all.

  Args:
    function: importable by name, from a module that is quick to import.
    items: iterable of what can be pickled.

  Yields:
    What the function returns.
  """
  workers = num_workers()
  pool = loky.ProcessPoolExecutor(
    workers,
    context=get_context("loky"),
    initializer=_end_with,
    initargs=(os.getpid(),),
  )
  with pool:
    waiting = collections.deque()
    for item in items:
      waiting.append(pool.submit(function, item))
      if len(waiting) > 3 * workers:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()


def _end_with(pid):
  """Ends a worker process when its parent is killed."""

  def wait():
    while os.getppid() == pid:
      time.sleep(1)
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()
