"""Joins the processes of a run, and prints which are missing."""

import contextlib
import functools
import os
import signal
import socket
import sys
import threading

import jax
from jax._src import distributed  # the key-value store has no public name

from bert_jax.distributed import child_process, environment
from bert_jax.distributed.hosts import Hosts, gather
from bert_jax.distributed.watch import Interrupted, Watch

# Set by a rehearsal: its process id. Its processes end when it does.
PARENT = "BERT_JAX_REHEARSAL"
# A host whose watch thread is silent for so long counts as lost. Orbax and XLA
# keep that thread from running for a few seconds at most.
_HEARTBEAT_SECONDS = 60
# Hosts of a slice start within minutes of one another, or not at all.
_JOIN_SECONDS = 300
_REMINDER_SECONDS = 30


@contextlib.contextmanager
def joined(is_restarted=False):
  """Joins the processes of the run; an error in one ends all of them.

  To be entered before JAX looks for devices. Inside, only process 0 prints to
  standard output.

  Args:
    is_restarted: True for a command that is expected to be stopped by a signal
      and started again: the exit status is then 0. Otherwise it is 128 + the
      signal's number.

  Yields:
    `Hosts`.

  Raises:
    UserError: some of the environment variables are missing, see
      `environment.given`.
  """
  if os.environ.get(PARENT):
    child_process.end_with(int(os.environ[PARENT]))
    _keep_stdout_from_gloo()
  hosts = _join()
  if hosts.is_alone:
    yield hosts
    return
  with contextlib.ExitStack() as stack:
    if not hosts.is_first:
      nowhere = stack.enter_context(open(os.devnull, "w"))
      stack.enter_context(contextlib.redirect_stdout(nowhere))
    try:
      for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(
          number, functools.partial(_raise_interrupted, is_restarted)
        )
      yield hosts
      hosts.gather(None)  # the coordinator must be the last to leave
    except BaseException as e:
      hosts.fail(e)
  hosts.close()
  jax.distributed.shutdown()


def _raise_interrupted(is_restarted, number, frame):
  del frame
  status = 0 if is_restarted else 128 + number
  raise Interrupted(signal.Signals(number).name, status)


def _join():
  """Returns the `Hosts` that this process belongs to."""
  address, count, index = environment.given()
  if count == 1 or (
    address is None
    and not (environment.is_on_tpu() or environment.is_task_of_several())
  ):
    return Hosts()
  heartbeat = float(
    os.environ.get("BERT_JAX_HEARTBEAT_SECONDS", _HEARTBEAT_SECONDS)
  )
  # `stopping` starts the preemption service at the first step.
  with _telling_who_is_missing() as timeout, _without_preemption_service():
    try:
      jax.distributed.initialize(
        address,
        count,
        index,
        # JAX's own timeouts abort the process in C++ with many lines. They
        # come later than ours, which print one line.
        initialization_timeout=timeout + 60,
        heartbeat_timeout_seconds=int(2 * heartbeat),
      )
    except ValueError as e:
      if address is None and "should be defined" in str(e):
        return Hosts()  # a TPU outside of Google's cloud, on one host
      raise
  joined_as = distributed.global_state
  index, count = joined_as.process_id, joined_as.num_processes
  if count == 1:
    return Hosts()
  client, address = joined_as.client, joined_as.coordinator_address
  names = gather(client, "names", index, count, socket.gethostname())
  watch = Watch(client, address, index, names, heartbeat)
  return Hosts(index, names, client, watch)


@contextlib.contextmanager
def _without_preemption_service():
  name = "jax_enable_preemption_service"
  jax.config.update(name, False)
  yield
  jax.config.update(name, True)


@contextlib.contextmanager
def _telling_who_is_missing():
  """Prints now and then which processes are missing; gives up in the end.

  Yields:
    seconds of waiting after which this process ends, int.
  """
  timeout = int(os.environ.get("BERT_JAX_JOIN_SECONDS", _JOIN_SECONDS))
  came = threading.Event()

  def tell():
    waited = 0
    while waited < timeout:
      if came.wait(min(_REMINDER_SECONDS, timeout - waited)):
        return
      waited += min(_REMINDER_SECONDS, timeout - waited)
      print(_missing(waited), file=sys.stderr, flush=True)
    print(
      f"error: the hosts of the slice did not all come within {timeout} s; "
      "expected the command to be started on every one of them (gcloud ... "
      "ssh --worker=all), and port "
      f"{(distributed.global_state.coordinator_address or '8482')[-4:]} open",
      file=sys.stderr,
      flush=True,
    )
    os._exit(2)  # the main thread waits in C++, which no exception ends

  thread = threading.Thread(target=tell, daemon=True)
  thread.start()
  try:
    yield timeout
  finally:
    came.set()
    thread.join()


def _missing(waited):
  me = distributed.global_state
  if me.coordinator_address is None:
    return f"waiting for the slice's metadata, {waited} s so far"
  others = "the others" if me.process_id == 0 else "host 0 and the others"
  return (
    f"waiting for {others}, {waited} s so far: this is host {me.process_id} of "
    f"{me.num_processes}, which meet at {me.coordinator_address}; start the "
    "command on every host (gcloud ... ssh --worker=all)"
  )


def _keep_stdout_from_gloo():
  """Sends to /dev/null what Gloo's C++ code prints to standard output."""
  sys.stdout.flush()
  sys.stdout = os.fdopen(os.dup(1), "w", 1)
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, 1)
  os.close(nowhere)
