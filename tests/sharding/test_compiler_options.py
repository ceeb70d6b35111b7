"""Claims about how a step is compiled; `test_plan.py` compiles real ones."""

import jax
import pytest

from bert_jax.sharding import compiler_options


class _Lowered:
  """A program that overflows VMEM with all options."""

  def __init__(self, message):
    self.message = message

  def compile(self, options=None):
    if options is None:
      raise jax.errors.JaxRuntimeError(self.message)
    return options


def test_a_step_that_overflows_vmem_is_compiled_without_fused_collectives():
  message = (
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 16.38M"
  )
  assert compiler_options.compile_step(_Lowered(message)) == {
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": False,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": False,
  }
  with pytest.raises(jax.errors.JaxRuntimeError, match="space hbm"):
    compiler_options.compile_step(_Lowered("out of memory in memory space hbm"))
