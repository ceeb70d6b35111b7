"""Settings of every test: offline, on sixteen devices of the CPU."""

import os
import signal
import tempfile

import jax
import pytest

# Processor seconds, children included, that an unmarked test may take: not a
# clock's, since those of a busy machine say nothing about the test.
MOST_SECONDS = 10

os.environ["HF_HUB_OFFLINE"] = "1"
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 16)
jax.config.update("jax_numpy_rank_promotion", "raise")
# A shell's background job ignores Ctrl-C, and so would every process that a
# test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
  """Gives all processes of this run of pytest one cache of programs.

  Not the next run: it would not notice a change of what is compiled into it
  by other means than the program's text.
  """
  if not hasattr(config, "workerinput"):
    config._compiled = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = config._compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  jax.config.update(
    "jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"]
  )
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
  """Fails a test that takes long and is not marked as slow."""
  begun = _processor_seconds()
  result = yield
  seconds = _processor_seconds() - begun
  item.user_properties.append(("processor_seconds", round(seconds, 2)))
  if seconds > MOST_SECONDS and not item.get_closest_marker("slow"):
    pytest.fail(
      f"{seconds:.1f} processor seconds; expected at most {MOST_SECONDS}, or "
      "the mark `slow`",
      pytrace=False,
    )
  return result


def _processor_seconds():
  times = os.times()
  return times.user + times.system + times.children_user + times.children_system
