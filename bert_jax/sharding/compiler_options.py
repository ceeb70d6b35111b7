"""Options of the TPU's compiler, and the compilation of a step."""

import jax

from bert_jax.sharding import mesh as mesh_lib

_FUSE_ALL_REDUCE = "xla_tpu_enable_async_collective_fusion_fuse_all_reduce"
_FUSE_ALL_GATHER = "xla_tpu_enable_async_collective_fusion_fuse_all_gather"
# TPU kinds where a fused all-reduce overflows VMEM.
_WITHOUT_FUSED_ALL_REDUCE = ("TPU v2", "TPU v3", "TPU v4", "TPU7x")

# Times are the compiler's estimates of two layers of BERT-base, 256 x 128 on 16
# chips of v5e: 3.88 ms with all options.
TPU_OPTIONS = {
  # Never splits a matrix multiplication to send its result piece by piece:
  # without this option 5.15 ms.
  "xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000,
  # Reduces each matrix' gradient as soon as it is there; does not combine it
  # with later ones: without this option 4.64 ms.
  "xla_jf_crs_combiner_threshold_in_bytes": 1_000_000,
  # All-reduces run during a matrix multiplication: without these two 4.65 ms.
  "xla_enable_async_all_reduce": True,
  _FUSE_ALL_REDUCE: True,
  # Gathers weights by all-gathers; by default the compiler sums zero-padded
  # shards on 64 chips: two layers of BERT-large there 5.45 to 4.71 ms.
  "xla_tpu_prefer_async_allgather_to_allreduce": True,
  # All-gathers run during other work on every generation; by default only on
  # v5e: BERT-base, 256 x 128, on 16 chips of v6e 6.77 to 6.11 ms.
  "xla_enable_async_all_gather": True,
  _FUSE_ALL_GATHER: True,
}


def compiler_options(mesh):
  """Returns the compiler's options for a step; None keeps its defaults."""
  if not mesh_lib.is_tpu(mesh):
    return None
  kind = mesh.devices.flat[0].device_kind
  fuses = kind not in _WITHOUT_FUSED_ALL_REDUCE
  return TPU_OPTIONS | ({} if fuses else {_FUSE_ALL_REDUCE: False})


def compile_step(lowered):
  """Compiles a step; on VMEM overflow retries without fused collectives.

  Args:
    lowered: `jax.stages.Lowered`.

  Returns:
    `jax.stages.Compiled`.

  Raises:
    jax.errors.JaxRuntimeError: the step cannot be compiled either way.
  """
  try:
    return lowered.compile()
  except jax.errors.JaxRuntimeError as e:
    if "memory space vmem" not in str(e):
      raise
  return lowered.compile({_FUSE_ALL_REDUCE: False, _FUSE_ALL_GATHER: False})
