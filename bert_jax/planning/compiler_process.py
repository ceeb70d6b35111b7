"""Runs compilations for TPUs, each in its own process with its own log.

A compilation takes a core for minutes, a fault in the compiler ends its
process, and libtpu's log on standard error is not for users.
"""

import concurrent.futures
import multiprocessing
import os
import sys
import tempfile
import time

from bert_jax.distributed.child_process import call_alone
from bert_jax.errors import UserError


def run_jobs(function, jobs, title):
  """Calls a function once per job, in as many processes as there are cores.

  Args:
    function: takes the arguments of a job; must be importable from its module.
    jobs: dict of job name to tuple of arguments.
    title: str, begins each line of progress on standard error.

  Returns:
    dict of job name to the function's result, or to a `UserError`: the one that
    it raised, or one that reports a crash of the compiler. In the order of
    `jobs`.
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
      _end_running(futures)
      raise
  return {name: results[name] for name in jobs}


def _end_running(futures):
  """Kills the processes of all jobs, also of one that is starting."""
  while not all(future.done() for future in futures):
    for child in multiprocessing.active_children():
      child.kill()
    time.sleep(0.1)


def _run_job(function, name, arguments):
  with tempfile.NamedTemporaryFile(
    prefix="libtpu-", suffix=".log", delete=False
  ) as f:
    log = f.name
  try:
    result = call_alone(function, *arguments, log=log)
  except ChildProcessError:
    return UserError(
      f"the compiler of libtpu crashed on {name}; expected a compiled program "
      f"(see its log {log}; try another mesh or batch size)"
    )
  except UserError as e:
    result = e
  os.remove(log)
  return result
