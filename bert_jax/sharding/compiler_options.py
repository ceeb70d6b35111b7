"""What the compiler of TPUs is told, and how a step is compiled."""

import jax

from bert_jax.sharding import mesh as mesh_lib

_FUSE_ALL_REDUCE = "xla_tpu_enable_async_collective_fusion_fuse_all_reduce"
_FUSE_ALL_GATHER = "xla_tpu_enable_async_collective_fusion_fuse_all_gather"
# Devices whose vector memory has no room for the former.
_WITHOUT_FUSED_ALL_REDUCE = ("TPU v2", "TPU v3", "TPU v4", "TPU7x")

# Times are the compiler's, of BERT-base cut to two layers, 256 x 128 on 16
# chips of v5e: 3.88 ms with all of them.
TPU_OPTIONS = {
  # Gradients are reduced whole, not in a ring of fifteen small products:
  # without it 5.15 ms.
  "xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000,
  # Each matrix' gradient is reduced by itself, and none waits for others to be
  # sent together: without it 4.64 ms.
  "xla_jf_crs_combiner_threshold_in_bytes": 1_000_000,
  # They are reduced beside other work, inside of a product: without either 4.65
  # ms.
  "xla_enable_async_all_reduce": True,
  _FUSE_ALL_REDUCE: True,
  # Weights are gathered, not summed with zeros, as the compiler does on 64
  # chips: two layers of BERT-large there 5.45 to 4.71 ms.
  "xla_tpu_prefer_async_allgather_to_allreduce": True,
  # And beside other work on every generation, as by default on v5e: BERT-base,
  # 256 x 128, from 6.77 to 6.11 ms on 16 chips of v6e.
  "xla_enable_async_all_gather": True,
  _FUSE_ALL_GATHER: True,
}


def compiler_options(mesh):
  """Returns the compiler's options for a step on a mesh; None: its own."""
  if not mesh_lib.is_tpu(mesh):
    return None
  kind = mesh.devices.flat[0].device_kind
  fuses = kind not in _WITHOUT_FUSED_ALL_REDUCE
  return TPU_OPTIONS | ({} if fuses else {_FUSE_ALL_REDUCE: False})


def compile_step(lowered):
  """Compiles a step, if need be with nothing sent inside of a product.

  Args:
    lowered: `jax.stages.Lowered`.

  Returns:
    `jax.stages.Compiled`.

  Raises:
    jax.errors.JaxRuntimeError: it can't be compiled.
  """
  try:
    return lowered.compile()
  except jax.errors.JaxRuntimeError as e:
    if "memory space vmem" not in str(e):
      raise
  return lowered.compile({_FUSE_ALL_REDUCE: False, _FUSE_ALL_GATHER: False})
