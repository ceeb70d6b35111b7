"""What the README and the configs tell people to type exists and parses."""

import importlib
import pathlib
import re
import shlex
import subprocess

import pytest

from bert_jax import config
from bert_jax.config import flatten
from bert_jax.finetune import config as finetune_config

ROOT = pathlib.Path(__file__).parents[1]
DOCS = sorted(ROOT.glob("docs/*.md"))
PAGES = [
  ROOT / "README.md",
  *DOCS,
  *sorted(ROOT.glob("configs/*.py")),
  *sorted(ROOT.glob("launch/*")),
]


def _commands():
  """Returns every `python -m bert_jax...` line, continuations joined."""
  found = []
  for page in PAGES:
    text = page.read_text().replace("\\\n", " ")
    for match in re.finditer(r"-m (bert_jax\.[\w.]+)([^`\n]*)", text):
      found.append((page.name, match[1], match[2]))
  return found


def _source(module):
  """Returns the text of a command, and of where it defines its flags."""
  path = ROOT / module.replace(".", "/")
  path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
  text = path.read_text()
  if "command.define_init_flags()" in text:
    text += (ROOT / "bert_jax" / "command.py").read_text()
  if "rehearsal.define_flags()" in text:
    text += (ROOT / "bert_jax/distributed/rehearsal.py").read_text()
  return text


@pytest.mark.parametrize(("page", "module", "arguments"), _commands())
def test_every_command_exists_with_its_flags(page, module, arguments):
  importlib.import_module(module)
  source = _source(module)
  defaults = finetune_config if "finetune" in module else config
  keys = flatten(defaults.default_config())
  for word in shlex.split(arguments.split("#")[0]):
    flag, _, value = word.removeprefix("--").partition("=")
    if not word.startswith("--"):
      continue
    if flag.startswith("config."):
      assert flag.removeprefix("config.") in keys
    elif flag == "config":
      assert "define_config_flag" in source
      if value.startswith("configs/"):
        assert (ROOT / value.partition(":")[0]).is_file()
    elif flag in ("workdir", "step"):
      assert "command.define_" in source
    else:
      defined = re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', source)
      assert flag in defined, f"{page}: {module} has no --{flag}"


@pytest.mark.parametrize(
  "page", [ROOT / "README.md", *DOCS], ids=lambda path: path.name
)
def test_every_path_named_exists(page):
  text = page.read_text()
  pattern = r"(?<![\w/.-])(?:bert_jax|configs|launch|tests|docs)/[\w./-]*\w"
  paths = set(re.findall(pattern, text))
  if page.name == "README.md":
    assert len(paths) > 15
    assert len(text.splitlines()) <= 180
  paths -= set((ROOT / ".gitignore").read_text().split())  # the user's own
  assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
  "script", sorted(ROOT.glob("launch/*.sh")), ids=lambda path: path.name
)
def test_every_script_parses(script):
  subprocess.run(["bash", "-n", script], check=True)


def test_the_top_level_holds_nothing_else():
  tracked = subprocess.run(
    ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
  ).stdout.splitlines()
  top = {path.split("/")[0] for path in tracked}
  allowed = {"bert_jax", "configs", "launch", "tests", "docs"}
  allowed |= {"setup.py", "README.md"}
  assert {name for name in top if not name.startswith(".")} <= allowed
