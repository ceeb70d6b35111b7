"""Builds batches in the background, ahead of the step and in order, by tf.data.

The only file that imports TensorFlow, from which accelerators are hidden.
Without TensorFlow a thread calls the same function, and the batches are equal.
"""

import concurrent.futures
import importlib.util
import os

import numpy as np

_AHEAD_BATCHES = 8


def iterate_batches(examples, batch_size, start, end, rows=slice(None)):
  """Yields the batches of some steps, built in the background.

  Args:
    examples: `Examples`.
    batch_size: sequences of a batch, over all processes.
    start: number of the first batch; batch `n` holds the examples
      [n * batch_size, (n + 1) * batch_size).
    end: number of the batch to stop before.
    rows: the slice of each batch that this process feeds.

  Yields:
    dict of numpy arrays, as `Examples.batch` makes it.
  """

  def build(number):
    first = np.int64(number) * batch_size
    return examples.batch(np.arange(first, first + batch_size)[rows])

  try:
    dataset = _tf_dataset(build, start, end)
  except ModuleNotFoundError:
    yield from _threaded(build, start, end)
  else:
    yield from dataset


def has_tensorflow():
  """Returns whether batches come through tf.data, and not from a thread."""
  return importlib.util.find_spec("tensorflow") is not None


def import_tensorflow():
  """Imports TensorFlow, without its log lines and without accelerators.

  Raises:
    ModuleNotFoundError: it is not installed.
  """
  # Before the import, which is chatty otherwise; oneDNN is for arithmetic.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
  import tensorflow as tf

  tf.config.set_visible_devices([], "GPU")
  return tf


def _tf_dataset(build, start, end):
  tf = import_tensorflow()
  sample = build(start)
  names = list(sample)
  types = [tf.as_dtype(array.dtype) for array in sample.values()]
  errors = []

  def build_arrays(number):
    try:
      return list(build(number).values())
    except Exception as e:
      errors.append(e)
      raise

  def load(number):
    return tf.numpy_function(build_arrays, [number], types, stateful=False)

  dataset = tf.data.Dataset.range(start, end)
  dataset = dataset.map(load, num_parallel_calls=2, deterministic=True)
  dataset = dataset.prefetch(_AHEAD_BATCHES)

  def batches():
    try:
      for arrays in dataset.as_numpy_iterator():
        yield dict(zip(names, arrays, strict=True))
    except tf.errors.OpError:
      # Of TensorFlow's error a user would see a traceback in place of a line.
      if errors:
        raise errors[0] from None
      raise

  return batches()


def _threaded(build, start, end):
  with concurrent.futures.ThreadPoolExecutor(1) as thread:
    ahead = min(start + _AHEAD_BATCHES, end)
    waiting = [thread.submit(build, n) for n in range(start, ahead)]
    for number in range(ahead, end):
      yield waiting.pop(0).result()
      waiting.append(thread.submit(build, number))
    for batch in waiting:
      yield batch.result()
