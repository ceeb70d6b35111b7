"""What `bench` measures of ours: the device's peak, the step, the input.

Each function here runs in a process of its own, which then ends, so that
nothing of it stays in the device's memory.
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

# Enough text that a batch is gathered from all over the memory.
_DOCUMENTS, _DOCUMENT_TOKENS, _SENTENCE_TOKENS = 8_000, 2_000, 25
_MIN_STEPS = 5
_ENDLESS = 10**9  # steps; however fast, it is not done before it is measured


def measure_device(dtype, seconds):
  """Measures what the device can do at best.

  Args:
    dtype: name of the matrix product's type, such as "bfloat16".
    seconds: float, how long to measure each figure.

  Returns:
    dict: a large matrix product, FLOP/s, and a large copy, bytes/s read and
    written, both of one device.
  """
  keep_freed_memory()
  device = jax.devices()[0]
  is_cpu = device.platform == "cpu"
  size = 1024 if is_cpu else 8192
  # A CPU's bfloat16 units are reached by products that come out as float32.
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
  """Measures the step of a phase, the one that `train` runs, without input.

  Args:
    config: validated settings.
    name: "phase1" or "phase2".
    seconds: float, how long to measure.

  Returns:
    dict of seconds a step and what follows from them; memory is the device's,
    or the whole process' on a CPU.

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
  """Measures how fast batches are built, with nothing else to do.

  Args:
    config: validated settings.
    name: "phase1" or "phase2".
    seconds: float, how long to measure.

  Returns:
    dict of seconds a batch, sequences a second of processor time, and which
    pipeline it was.
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
    dict of seconds a step and `data_wait`, the share of them in which the step
    waited for its batch.
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

  train(0)  # until memory is taken and caches are warm
  return train(seconds) | {"seconds": clock.seconds_per_step}


def _create_stage(config, name):
  """Returns (`Run`, `Stage`, `TrainState`) of one phase, on made-up text."""
  config = copy.deepcopy(config)
  config[name].num_steps = _ENDLESS
  run = run_lib.create_run(config, made_up_corpus(config.corpus.vocab_size))
  state = run_lib.create_state(run)
  stages = session.create_stages(run, state)
  (stage,) = (stage for stage in stages if stage.name == name)
  return run, stage, state


def made_up_corpus(vocab_size):
  """Makes a corpus in memory, of tokens drawn at random.

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
  """Returns the bytes that were in use at most."""
  figures = jax.devices()[0].memory_stats()
  if figures:
    return figures["peak_bytes_in_use"]
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
