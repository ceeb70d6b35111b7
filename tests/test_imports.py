"""What each folder may import: one way only, and nothing heavy."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "bert_jax"
# Folder -> the folders that it may import beside itself; every folder may
# import `errors`, `config` and `command` too.
BASE = {"errors", "config", "command"}
ALLOWED = {
  "hlo": set(),
  "sharding": set(),
  "distributed": set(),
  "model": {"sharding"},
  "storage": {"distributed"},
  "training": {"hlo", "sharding", "distributed"},
  "data": {"storage"},
  "weights": {"data", "model", "sharding", "storage"},
  "inference": {
    "data",
    "distributed",
    "model",
    "sharding",
    "storage",
    "weights",
  },
  "pretraining": {
    "data",
    "distributed",
    "model",
    "sharding",
    "storage",
    "training",
    "weights",
  },
  "finetune": {
    "data",
    "distributed",
    "model",
    "sharding",
    "storage",
    "training",
    "weights",
  },
  "planning": {
    "distributed",
    "hlo",
    "pretraining",
    "sharding",
    "storage",
    "training",
  },
  "benchmark": {"data", "distributed", "pretraining", "sharding", "training"},
}
COMMANDS = {
  "bench",
  "curve",
  "embed",
  "evaluate",
  "export",
  "fill_mask",
  "growth",
  "judge_next",
  "plan",
  "preflight",
  "prepare",
  "score",
  "train",
}
MODULES = sorted(
  ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
  for path in PACKAGE.rglob("*.py")
  if path.stem != "__init__"
)
# The peer that `bench` measures beside ours.
PEER = "bert_jax.benchmark.torch_peer"


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


def _imported_parts(module):
  """Returns the folders and root files of ours that a file imports."""
  return {
    name.split(".")[1]
    for name in _imports(module)
    if name.startswith("bert_jax.")
  }


def test_the_table_names_every_folder_and_every_command():
  folders = {path.parent.name for path in PACKAGE.glob("*/*.py")}
  assert folders == ALLOWED.keys()
  files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
  assert files == COMMANDS | BASE


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_a_folder_imports_only_what_the_table_allows(folder):
  allowed = ALLOWED[folder] | BASE | {folder}
  for module in MODULES:
    if module.startswith(f"bert_jax.{folder}."):
      assert _imported_parts(module) <= allowed, module


def test_the_table_has_no_circle():
  """Each folder can be put behind all that it imports."""
  placed = set()
  while placed != ALLOWED.keys():
    ready = {f for f in ALLOWED.keys() - placed if ALLOWED[f] <= placed}
    assert ready, f"a circle among {sorted(ALLOWED.keys() - placed)}"
    placed |= ready


def test_the_table_allows_nothing_that_is_not_used():
  for folder, allowed in ALLOWED.items():
    used = set()
    for module in MODULES:
      if module.startswith(f"bert_jax.{folder}."):
        used |= _imported_parts(module)
    assert allowed <= used, folder


def test_nobody_imports_a_command():
  for module in MODULES:
    assert not _imported_parts(module) & COMMANDS, module


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_a_folder_holds_few_files_of_at_most_400_lines(folder):
  files = [p for p in (PACKAGE / folder).glob("*.py") if p.stem != "__init__"]
  assert 2 <= len(files) <= 20
  for path in files:
    assert len(path.read_text().splitlines()) <= 400, path


def test_only_the_pipeline_imports_tensorflow():
  importers = [m for m in MODULES if "tensorflow" in _imports(m)]
  assert importers == ["bert_jax.data.pipeline"]


def test_nothing_imports_torch_or_transformers_but_what_is_compared_with():
  for module in set(MODULES) - {PEER}:
    heads = {name.split(".")[0] for name in _imports(module)}
    assert not heads & {"torch", "transformers"}, module


def test_the_data_side_never_imports_jax():
  """Workers that tokenise start in milliseconds and take no accelerator."""
  program = (
    "import sys\n"
    "from bert_jax.data import encoding, vocabulary, examples\n"
    "from bert_jax.data.writing import parallel\n"
    "assert not {'jax', 'flax', 'optax', 'orbax'} & set(sys.modules)\n"
  )
  subprocess.run([sys.executable, "-c", program], check=True)
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
