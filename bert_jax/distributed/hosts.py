"""The processes of a run, one on each host, that act as one program.

They exchange values through the key-value store of JAX's coordination service
and not through devices: that works before JAX has a backend, and while process
0 prepares text for hours.
"""

import itertools
import json
import time


class Hosts:
  """This process among the processes of its run.

  Attributes:
    index: int, 0 for the process that prints and writes files.
    names: list of str, the host name of each process by index.
  """

  def __init__(self, index=0, names=("",), client=None, watch=None):
    """Makes, by default, a process that is alone.

    Args:
      index: int, of this process.
      names: list of str, the host name of each process.
      client: JAX's client of the coordination service.
      watch: `Watch` of the other processes.
    """
    self.index = index
    self.names = names
    self._client = client
    self._watch = watch
    self._rounds = itertools.count()
    self._steps = itertools.count(1)

  @property
  def is_first(self):
    """Whether this is the process that prints and writes files."""
    return self.index == 0

  @property
  def is_alone(self):
    """Whether there is no other process."""
    return len(self.names) == 1

  def gather(self, value):
    """Exchanges a value with all processes, which all call this.

    Args:
      value: JSON-able.

    Returns:
      list of the processes' values.
    """
    if self.is_alone:
      return [value]
    return gather(
      self._client, next(self._rounds), self.index, len(self.names), value
    )

  def on_first(self, function):
    """Calls a function on process 0 while the others wait.

    Args:
      function: without arguments; an error that it raises ends all processes.

    Returns:
      what it returned, on every process; JSON-able.
    """
    return self.gather(function() if self.is_first else None)[0]

  def count_step(self):
    """Returns the number of a step just begun, counted from 1.

    It goes on where a run of another seed begins again at its first step: the
    sync point of `stopping` needs numbers that only grow.
    """
    return next(self._steps)

  def close(self):
    """Stops watching the other processes, once all are at their end."""
    if not self.is_alone:
      self._watch.close()

  def fail(self, error):
    """Ends every process because of an error in this one.

    Does not return where there are several processes; does nothing where this
    one is alone.
    """
    if not self.is_alone:
      self._watch.fail(error)


def gather(client, number, index, count, value):
  """Exchanges a value among processes; see `Hosts.gather`.

  Args:
    client: JAX's client of the coordination service.
    number: name of this exchange, which no other one has, such as a count.
    index: int, of this process.
    count: int, of all processes.
    value: JSON-able.

  Returns:
    list of the processes' values.
  """
  key = f"bert_jax/gather/{number}"
  client.key_value_set(f"{key}/{index}", json.dumps(value))
  # Polled, since a blocking call would keep signals from being handled.
  while len(found := client.key_value_dir_get(f"{key}/")) < count:
    time.sleep(0.1)
  by_index = {int(k.rsplit("/", 1)[1]): json.loads(v) for k, v in found}
  return [by_index[i] for i in range(count)]
