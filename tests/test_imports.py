"""What each part may import: one way only, and nothing heavy."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "bert_jax"
MODULES = sorted(
  ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
  for path in PACKAGE.rglob("*.py")
  if path.stem != "__init__"
)
# The peer that `bench` measures beside ours.
PEER = "bert_jax.benchmark.torch_peer"
# Files that a reader can understand without any other of ours.
PURE = {
  "modeling",
  "bert_config",
  "activations",
  "attention",
  "attention_kernel",
  "devices",
  "encoder",
  "dropout",
  "products",
  "masking",
  "losses",
  "optimizer",
  "flops",
  "train_state",
}


def _imports(module):
  """Returns the modules that a file imports, wherever it does."""
  path = PACKAGE.parent / (module.replace(".", "/") + ".py")
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
      names.add(node.module)
  return names


def test_only_the_pipeline_imports_tensorflow():
  importers = [m for m in MODULES if "tensorflow" in _imports(m)]
  assert importers == ["bert_jax.data.pipeline"]


def test_nothing_imports_torch_or_transformers_but_what_is_compared_with():
  for module in set(MODULES) - {PEER}:
    heads = {name.split(".")[0] for name in _imports(module)}
    assert not heads & {"torch", "transformers"}, module


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_files_import_nothing_of_ours_but_one_another(module):
  ours = {
    name.split(".")[1]
    for name in _imports(f"bert_jax.{module}")
    if name.startswith("bert_jax.")
  }
  assert ours <= PURE


def test_the_data_side_never_imports_jax():
  """Workers that tokenise start in milliseconds and take no accelerator."""
  for module in MODULES:
    if module.startswith("bert_jax.data"):
      heads = {name.split(".")[0] for name in _imports(module)}
      assert not heads & {"jax", "flax", "optax", "orbax"}, module


def test_every_module_imports_without_torch_transformers_and_tensorflow():
  """A machine that has none of them can prepare, train and export."""
  hidden = ("torch", "transformers", "tensorflow")
  modules = [module for module in MODULES if module != PEER]
  program = (
    "import importlib, sys\n"
    f"sys.modules.update(dict.fromkeys({hidden}))\n"
    f"for module in {modules}: importlib.import_module(module)\n"
  )
  subprocess.run([sys.executable, "-c", program], check=True)


def test_importing_a_command_does_not_look_for_devices():
  """jax.devices() at import time would take a TPU from another process."""
  program = (
    "import bert_jax.train\n"
    "from jax._src import xla_bridge\n"
    "assert not xla_bridge.backends_are_initialized()\n"
  )
  subprocess.run([sys.executable, "-c", program], check=True)
