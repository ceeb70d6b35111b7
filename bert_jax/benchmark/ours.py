"""Measures the device's peak, our train step and our input pipeline.

Each function runs in its own process, so that the device's memory is free for
the next.
"""

import copy
import dataclasses
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.benchmark.stopwatch import time_repeats
from bert_jax.data import pipeline
from bert_jax.data.corpus import DOCUMENT, Corpus
from bert_jax.data.tokenization import SPECIAL_TOKENS, token_dtype
from bert_jax.errors import DoesNotFitError
from bert_jax.pretraining import run as run_lib
from bert_jax.pretraining import session
from bert_jax.sharding import rows as rows_lib
from bert_jax.training import flops
from bert_jax.training import loop as loop_lib
from bert_jax.training.host_memory import keep_freed_memory
from bert_jax.training.step_clock import StepClock

# A text much larger than the processor's caches, as real ones are.
_DOCUMENTS, _DOCUMENT_TOKENS, _SENTENCE_TOKENS = 8_000, 2_000, 25
_MIN_STEPS = 5
_NUM_STEPS = 10**9  # more than can be measured


def measure_device(dtype, seconds):
  """Measures the peak rates of one device.

  Args:
    dtype: of the matrices, such as "bfloat16".
    seconds: float, how long to measure each figure.

  Returns:
    dict with the FLOP/s of a large matrix multiplication and the bytes/s, read
    and written, of a large copy.
  """
  keep_freed_memory()
  device = jax.devices()[0]
  is_cpu = device.platform == "cpu"
  size = 1024 if is_cpu else 8192
  # XLA uses a CPU's bfloat16 units only for a float32 result.
  result = jnp.float32 if is_cpu else dtype
  left, right = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
  product = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=result))
  megabytes = 256 if is_cpu else 2048
  source = jnp.zeros(megabytes * 2**18, jnp.float32)
  copy = jax.jit(lambda x: x + 1)
  multiplied = time_repeats(_repeat(product, left, right), seconds)
  copied = time_repeats(_repeat(copy, source), seconds)
  return {
    "device_kind": device.device_kind,
    "num_devices": jax.device_count(),
    "jax": jax.__version__,
    "dtype": dtype,
    "matmul_flops_per_second": 2 * size**3 / multiplied.seconds,
    "copy_bytes_per_second": 2 * source.nbytes / copied.seconds,
    "datasheet_flops_per_second": flops.peak_flops(device),
  }


def _repeat(function, *arguments):
  def repeat(times):
    for _ in range(times):
      outputs = function(*arguments)
    jax.block_until_ready(outputs)

  return repeat


def measure_step(config, name, seconds):
  """Measures the step of a phase, as `train` runs it, on one fixed batch.

  Args:
    config: validated settings.
    name: "phase1" or "phase2".
    seconds: float, how long to measure.

  Returns:
    dict with seconds a step, FLOPs, and peak bytes of memory: of the device, or
    of the whole process on a CPU.

  Raises:
    DoesNotFitError: the device has too little memory.
  """
  keep_freed_memory()
  try:
    return _measure_step(config, name, seconds)
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" in str(e):
      raise DoesNotFitError(str(e).splitlines()[0]) from None
    raise


def _measure_step(config, name, seconds):
  run, stage, state = _create_stage(config, name)
  started = time.perf_counter()
  ((step,),) = loop_lib.compile_stages([stage], state)
  compile_seconds = time.perf_counter() - started
  batch = next(stage.iterate_batches(0))
  batch = rows_lib.global_batch(run.mesh, batch)

  def repeat(times):
    nonlocal state
    for _ in range(times):
      state, metrics = step(state, batch)
    jax.block_until_ready(metrics)

  timing = time_repeats(repeat, seconds)
  return dataclasses.asdict(timing) | {
    "model_flops": stage.flops_per_step,
    "memory_bytes": _peak_memory(),
    "compile_seconds": compile_seconds,
  }


def measure_input(config, name, seconds):
  """Measures how fast the input pipeline builds batches, without a step.

  Args:
    config: validated settings.
    name: "phase1" or "phase2".
    seconds: float, how long to measure.

  Returns:
    dict with seconds a batch, sequences per second and core, and which pipeline
    was measured.
  """
  keep_freed_memory()
  _, stage, _ = _create_stage(config, name)
  batches = stage.iterate_batches(0)

  def repeat(times):
    for _ in range(times):
      next(batches)

  cpu_started = time.process_time()
  started = time.perf_counter()
  timing = time_repeats(repeat, seconds)
  cores = (time.process_time() - cpu_started) / (time.perf_counter() - started)
  rate = stage.batch_size / timing.seconds
  return dataclasses.asdict(timing) | {
    "pipeline": "tf.data" if pipeline.has_tensorflow() else "thread",
    "sequences_per_core_second": rate / cores,
  }


def measure_training(config, name, seconds):
  """Measures input and step together, as `train` runs them.

  Args:
    config: validated settings.
    name: "phase1" or "phase2".
    seconds: float, how long to measure.

  Returns:
    dict with seconds a step and `data_wait`, the share of the time in which
    the step waited for its batch.
  """
  keep_freed_memory()
  run, stage, state = _create_stage(config, name)
  ((step,),) = loop_lib.compile_stages([stage], state)
  clock = StepClock(stage.batch_size, stage.max_seq_length, 0, None)
  batches = stage.iterate_batches(0)

  def train(seconds):
    nonlocal state
    end, repeats = time.monotonic() + seconds, 0
    while repeats < _MIN_STEPS or time.monotonic() < end:
      state, metrics = loop_lib.take_step(step, state, batches, run.mesh, clock)
      repeats += 1
    jax.block_until_ready(metrics)
    return {"repeats": repeats, "data_wait": clock.rates(None)["data_wait"]}

  train(0)  # warm-up
  return train(seconds) | {"seconds": clock.seconds_per_step}


def _create_stage(config, name):
  """Returns (`Run`, `Stage`, `TrainState`) of one phase, on made-up text."""
  config = copy.deepcopy(config)
  config[name].num_steps = _NUM_STEPS
  run = run_lib.create_run(config, made_up_corpus(config.corpus.vocab_size))
  state = run_lib.create_state(run)
  stages = session.create_stages(run, state)
  (stage,) = (stage for stage in stages if stage.name == name)
  return run, stage, state


def made_up_corpus(vocab_size):
  """Creates a corpus of random tokens in memory.

  Args:
    vocab_size: int, tokens of the vocabulary.

  Returns:
    `Corpus`.
  """
  num_special = len(SPECIAL_TOKENS)
  words = range(vocab_size - num_special)
  rng = np.random.default_rng(0)
  num_tokens = _DOCUMENTS * _DOCUMENT_TOKENS
  documents = np.zeros(_DOCUMENTS, DOCUMENT)
  documents["start"] = np.arange(_DOCUMENTS) * _DOCUMENT_TOKENS
  documents["num_tokens"] = _DOCUMENT_TOKENS
  documents["num_sentences"] = _DOCUMENT_TOKENS // _SENTENCE_TOKENS
  documents["first_sentence"] = (
    np.arange(_DOCUMENTS) * documents["num_sentences"]
  )
  documents["hash"] = rng.integers(2**64, size=_DOCUMENTS, dtype=np.uint64)
  starts = np.arange(0, _DOCUMENT_TOKENS, _SENTENCE_TOKENS, dtype=np.uint32)
  return Corpus(
    vocab=[*SPECIAL_TOKENS, *(f"token{i}" for i in words)],
    tokens=rng.integers(
      num_special, vocab_size, num_tokens, dtype=token_dtype(vocab_size)
    ),
    sentence_starts=np.tile(starts, _DOCUMENTS),
    documents=documents,
    manifest={
      "fingerprint": "made up",
      "entries": [{"spec": "made up", "language": "en"}],
    },
  )


def _peak_memory():
  """Returns the peak bytes in use."""
  figures = jax.devices()[0].memory_stats()
  if figures:
    return figures["peak_bytes_in_use"]
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
