"""Files of a run are written, renamed and addressed in bert_jax/storage only.

What works on a disk alone, such as a rename or `open`, fails at gs:// or does
something else there; `bert_jax.storage.paths` has a form of each that works in
both places. Reading with the methods of a path that `as_path` returned is fine.
"""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[2] / "bert_jax"
# What the files may do all the same, and why no run's folder is meant.
EXCEPTIONS = {
  # Text to read, which lies on this computer's disk.
  "data/blocks.py": {"open"},
  "data/sources/spec.py": {"os.path"},
  # A corpus is written to a local folder and uploaded by corpus_cache.
  "data/corpus.py": {"open"},
  "data/writing/corpus_writer.py": {"open"},
  "data/writing/parts.py": {"open", ".rmtree"},
  # /dev/null, and a descriptor of this process.
  "distributed/joining.py": {"open"},
  # Whether a name is one without folders.
  "weights/folder_files.py": {"os.path"},
  # A log beside a process, in this computer's temporary folder.
  "planning/compiler_process.py": {"os.remove"},
  # The new file that `replaced_file` gives.
  "inference/embeddings_file.py": {".open to write", ".write_bytes"},
  "inference/json_lines.py": {".open to write"},
}
METHODS = {
  "absolute",
  "rename",
  "resolve",
  "rmtree",
  "symlink_to",
  "touch",
  "write_bytes",
  "write_text",
}
FUNCTIONS = {"os.replace", "os.rename", "os.remove", "os.makedirs"}
MODULES = sorted(
  str(path.relative_to(PACKAGE))
  for path in PACKAGE.rglob("*.py")
  if path.parent.name != "storage"
)


def _uses(tree):
  """Yields what a file does with paths by itself."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute):
      name = ast.unparse(node)
      if name.startswith("os.path.") or name in FUNCTIONS:
        yield "os.path" if name.startswith("os.path.") else name
    if not isinstance(node, ast.Call):
      continue
    if isinstance(node.func, ast.Name) and node.func.id == "open":
      yield "open"
    if ast.unparse(node.func) in ("epath.Path", "shutil.move"):
      yield ast.unparse(node.func)
    if isinstance(node.func, ast.Attribute):
      owner = ast.unparse(node.func.value)
      if owner not in ("paths", "dataclasses"):
        yield from _method(node.func.attr, node)


def _method(name, call):
  """Yields a method of paths that writes or only works on a disk."""
  if name in METHODS:
    yield f".{name}"
  # str.replace takes two arguments, a path's one.
  if name == "replace" and len(call.args) == 1:
    yield ".replace"
  mode = ast.unparse(call.args[0]) if call.args else ""
  if name == "open" and set(mode) & set("wax"):
    yield ".open to write"


@pytest.mark.parametrize("module", MODULES)
def test_a_file_outside_of_storage_leaves_paths_to_it(module):
  found = set(_uses(ast.parse((PACKAGE / module).read_text())))
  assert found == EXCEPTIONS.get(module, set())


def test_the_search_finds_each_kind():
  """A search that finds nothing must be one that could."""
  lines = {
    "open('x')": "open",
    "os.path.join(a, b)": "os.path",
    "os.replace(a, b)": "os.replace",
    "epath.Path(a)": "epath.Path",
    "path.absolute()": ".absolute",
    "a.rename(b)": ".rename",
    "a.replace(b)": ".replace",
    "a.open('wb')": ".open to write",
    "a.write_text('')": ".write_text",
  }
  for line, kind in lines.items():
    assert set(_uses(ast.parse(line))) == {kind}
  for line in ("a.open('rb')", "a.replace('x', 'y')", "state.replace(step=1)"):
    assert not set(_uses(ast.parse(line)))
