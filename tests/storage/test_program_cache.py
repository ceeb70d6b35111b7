"""Compiled programs are kept apart for processors that differ."""

import jax
import pytest
from etils import epath

from bert_jax.distributed.hosts import Hosts
from bert_jax.storage import program_cache

CPUINFO = """processor\t: 0
model name\t: A processor
flags\t\t: fpu avx2 avx512f
"""


def test_a_processor_is_named_by_its_model_and_its_features(tmp_path):
  names = []
  for text in (
    CPUINFO,
    CPUINFO.replace("0", "1", 1),
    CPUINFO.replace(" avx512f", ""),
    CPUINFO.replace("A processor", "Another"),
  ):
    (tmp_path / "cpuinfo").write_text(text)
    names.append(program_cache.name_processor(str(tmp_path / "cpuinfo")))
  assert names[0] == names[1]
  assert len(set(names)) == 3
  assert program_cache.name_processor(str(tmp_path / "none")).isalnum()


@pytest.fixture(name="workdir")
def _workdir(tmp_path):
  """A workdir for which JAX is told nothing about programs yet."""
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)
  yield epath.Path(tmp_path)
  jax.config.update("jax_compilation_cache_dir", before)


def _keep(workdir):
  """Returns the folder of programs, as a new process would find it."""
  jax.config.update("jax_compilation_cache_dir", None)
  program_cache.keep_programs(workdir, Hosts())
  return epath.Path(jax.config.jax_compilation_cache_dir)


def test_programs_are_kept_by_device_and_processor(workdir):
  found = _keep(workdir)
  assert found.parent == workdir / "compiled"
  assert found.name == f"cpu-{program_cache.name_processor()}"
  program_cache.keep_programs(workdir / "other", Hosts())
  assert jax.config.jax_compilation_cache_dir == str(found)


def test_only_programs_with_the_checksum_that_was_noted_are_used(workdir):
  """JAX would hand a damaged one to XLA, which may crash or run something."""
  directory = _keep(workdir)
  for name in ("whole", "changed", "swapped", "longer"):
    (directory / f"jit_{name}-cache").write_bytes(name.encode())
  program_cache.note_programs(workdir)
  (directory / "jit_changed-cache").write_bytes(b"changeD")
  (directory / "jit_swapped-cache").write_bytes(b"whole")
  (directory / "jit_longer-cache").write_bytes(b"longer ")
  (directory / "jit_unfinished-cache").write_bytes(b"unfin")  # by a kill
  (directory / "jit_folder-cache").mkdir()
  assert _keep(workdir) == directory
  assert [p.name for p in directory.glob("*-cache")] == ["jit_whole-cache"]


@pytest.mark.parametrize("content", ["", "{", "7", "[1]", None])
def test_damaged_checksums_are_those_of_no_program(workdir, content):
  directory = _keep(workdir)
  (directory / "jit_f-cache").write_bytes(b"program")
  program_cache.note_programs(workdir)
  (directory / "checksums.json").unlink()
  if content is None:
    (directory / "checksums.json").mkdir()
  else:
    (directory / "checksums.json").write_text(content)
  _keep(workdir)
  assert not list(directory.glob("*-cache"))


def test_a_file_in_the_place_of_the_folder_is_told(workdir, capsys):
  (workdir / "compiled").write_text("")
  program_cache.keep_programs(workdir, Hosts())
  assert jax.config.jax_compilation_cache_dir is None
  assert "compiled programs are not kept" in capsys.readouterr().out
