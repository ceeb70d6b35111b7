"""Settings of every test: offline, on sixteen devices of the CPU."""

import os
import signal
import tempfile
import time

import hypothesis
import jax
import pytest

# Seconds that an unmarked test may take, by the clock and by the processor,
# children included: a busy machine makes the one longer, several threads the
# other, and neither says anything about the test.
MOST_SECONDS = 10

os.environ["HF_HUB_OFFLINE"] = "1"
# Seeded, without a folder of its own, and whatever else the machine does.
hypothesis.settings.register_profile(
  "tests", deadline=None, derandomize=True, database=None
)
hypothesis.settings.load_profile("tests")
# Most programs of tests run once or twice: what LLVM would save there it costs
# many times over in compilation.
os.environ["XLA_FLAGS"] = (
  f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
)
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


def pytest_addoption(parser):
  """Adds `--all`."""
  parser.addoption("--all", action="store_true", help="run slow tests too")


def pytest_collection_modifyitems(config, items):
  """Leaves slow tests to `--all`."""
  slow = [item for item in items if item.get_closest_marker("slow")]
  if config.getoption("--all") or not slow:
    return
  items[:] = [item for item in items if item not in slow]
  config.hook.pytest_deselected(items=slow)
  _note_left_out(config, len(slow))


def _note_left_out(config, count):
  """Keeps how many tests were left out, in the process that tells it."""
  config._left_out = count
  if hasattr(config, "workerinput"):
    config.workeroutput["left_out"] = count


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
  """Takes what a process of pytest-xdist left out; all left out the same."""
  _note_left_out(node.config, getattr(node, "workeroutput", {}).get("left_out"))


def pytest_unconfigure(config):
  """Says, as the last line, what was left out."""
  left_out = getattr(config, "_left_out", None)
  if left_out and not hasattr(config, "workerinput"):
    print(f"{left_out} slow tests left out; bash launch/test.sh --all")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
  """Fails a test that takes long and is not marked as slow."""
  begun, clock = _processor_seconds(), time.monotonic()
  result = yield
  seconds = min(_processor_seconds() - begun, time.monotonic() - clock)
  if seconds > MOST_SECONDS and not item.get_closest_marker("slow"):
    pytest.fail(
      f"{seconds:.1f} seconds; expected at most {MOST_SECONDS}, or the mark "
      "`slow`",
      pytrace=False,
    )
  return result


def _processor_seconds():
  times = os.times()
  return times.user + times.system + times.children_user + times.children_system


@pytest.fixture
def gcs(monkeypatch):
  """A `Server` of gs://, which clients of this process and its children use."""
  from tests.gcs_server.server import serve

  with serve() as server:
    for name, value in server.environment().items():
      monkeypatch.setenv(name, value)
    yield server
