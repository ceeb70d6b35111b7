"""Compiled programs are kept apart for processors that differ."""

import jax
from etils import epath

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


def test_programs_are_kept_by_device_and_processor(tmp_path):
  before = jax.config.jax_compilation_cache_dir
  try:
    jax.config.update("jax_compilation_cache_dir", None)
    program_cache.keep_programs(epath.Path(tmp_path))
    found = epath.Path(jax.config.jax_compilation_cache_dir)
    assert found.parent == epath.Path(tmp_path) / "compiled"
    assert found.name == f"cpu-{program_cache.name_processor()}"
    program_cache.keep_programs(epath.Path(tmp_path / "other"))
    assert jax.config.jax_compilation_cache_dir == str(found)
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
