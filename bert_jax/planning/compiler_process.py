"""Runs jobs of the TPU's compiler, each in a process of its own.

A compilation takes a core for minutes and, where the compiler has a fault,
takes its process along; and what it writes to standard error is for its
makers. So each job has a process and a log, and several run side by side.
"""

import concurrent.futures
import os
import sys
import tempfile
import time

from bert_jax.distributed.child_process import call_alone
from bert_jax.errors import UserError


def run_jobs(function, jobs, title):
  """Calls a function once a job, as many at a time as there are cores.

  Args:
    function: of the arguments of a job; at the top of a module, since it is
      imported in each process.
    jobs: dict of name to tuple of arguments.
    title: str before the progress that goes to standard error.

  Returns:
    dict of name to what the function returned, or to the `UserError` that it
    raised or that tells of a crash; in the order of `jobs`.
  """
  results, begin = {}, time.monotonic()
  print(f"{title}: {len(jobs)} to compile", file=sys.stderr, flush=True)
  workers = max(1, min(len(jobs), os.cpu_count()))
  with concurrent.futures.ThreadPoolExecutor(workers) as threads:
    futures = {
      threads.submit(_run_job, function, name, arguments): name
      for name, arguments in jobs.items()
    }
    try:
      for future in concurrent.futures.as_completed(futures):
        results[futures[future]] = future.result()
        print(
          f"{title}: {len(results)} of {len(jobs)} after "
          f"{time.monotonic() - begin:.0f} s: {futures[future]}",
          file=sys.stderr,
          flush=True,
        )
    except BaseException:  # also an interrupt
      threads.shutdown(wait=False, cancel_futures=True)
      raise
  return {name: results[name] for name in jobs}


def _run_job(function, name, arguments):
  with tempfile.NamedTemporaryFile(
    prefix="libtpu-", suffix=".log", delete=False
  ) as f:
    log = f.name
  try:
    # One process for each job, so that a crash ends no other.
    result = call_alone(function, *arguments, log=log)
  except ChildProcessError:
    return UserError(
      f"the compiler of libtpu crashed on {name}; expected a program (its log "
      f"is {log}; another mesh or batch may be spared)"
    )
  except UserError as e:
    result = e
  os.remove(log)
  return result
