"""Estimates of short made-up programs, added up by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bert_jax.hlo import cost as cost_lib
from bert_jax.hlo import links, program
from bert_jax.planning import slices

LINK = 50e9
RATES = cost_lib.Rates(
  clock_hz=1e9,
  peak_flops=100e12,
  hbm_bytes_per_second=1e12,
)
# 4 x 4 chips in rings: four links each.
TORUS = links.Torus(
  coords=tuple((i // 4, i % 4) for i in range(16)),
  rings=(True, True),
  link_bytes_per_second=LINK,
)

PROGRAM = """\
HloModule jit_step, is_scheduled=true

%fused (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %inner = f32[4]{0} add(%p, %p), backend_config={"estimated_cycles":"999"}
}

%body (b: (s32[], f32[4])) -> (s32[], f32[4]) {
  %b = (s32[], f32[4]{0}) parameter(0)
  %work.1 = f32[4]{0} fusion(%b), calls=%fused, \
backend_config={"x":{"estimated_cycles":"100"}}
}

%cond (c: (s32[], f32[4])) -> pred[] {
  %c = (s32[], f32[4]{0}) parameter(0)
  %limit = s32[]{:T(128)} constant(7)
}

%sent (s: bf16[1000], t: token[]) -> bf16[16000] {
  %s = bf16[1000]{0} parameter(0)
  %t = token[] parameter(1)
  ROOT %all-gather.8 = bf16[16000]{0} all-gather(%s), \
replica_groups=[1,16]<=[16], dimensions={0}
}, execution_thread="sparsecore"

%looked (l: s32[9000]) -> s32[9000] {
  %l = s32[9000]{0} parameter(0)
  ROOT %looked_up.6 = s32[9000]{0} fusion(%l), calls=%fused, \
backend_config={"estimated_cycles":"9223372036854775807"}
}, execution_thread="sparsecore"

%held (h: bf16[1000]) -> bf16[16000] {
  %h = bf16[1000]{0} parameter(0)
  %all-gather.9 = bf16[16000]{0} all-gather(%h), \
replica_groups=mesh['axis_0'=16,'axis_1'=1] {'axis_0'}, dimensions={0}
}

%all-reduce-scatter.3 (r: bf16[160], q: bf16[320]) -> (bf16[10], bf16[20]) {
  %r = bf16[160]{0} parameter(0)
  %q = bf16[320]{0} parameter(1)
  %all-reduce.2 = (bf16[160]{0}, bf16[320]{0}) all-reduce(%r, %q), \
replica_groups={{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}}
  %part = bf16[10]{0} dynamic-slice(%all-reduce.2, %id)
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %buffer = f32[4]{0} custom-call(), custom_call_target="AllocateBuffer"
  %first.2 = f32[4]{0} fusion(%a), calls=%fused, \
metadata={op_name="jit(train_step)/layer_11/dense"}, \
backend_config={"estimated_cycles":"1000"}
BODY
  %sorted.3 = f32[4]{0} sort(%a), dimensions={0}
}
"""


def estimate(*lines, bundles=None):
  body = "\n".join(f"  {line}" for line in lines)
  text = PROGRAM.replace("BODY", body)
  return cost_lib.estimate(text, RATES, TORUS, bundles)


def test_cycles_of_the_schedule_add_up_and_those_inside_fusions_do_not():
  cost = estimate()
  assert cost.compute_seconds == pytest.approx(1000e-9)
  assert cost.seconds == cost.compute_seconds
  assert cost.cycles_by_op == {"layer/dense": 1000}


def test_what_has_no_estimate_is_named():
  assert estimate().uncosted == {"sorted": 1}


@pytest.mark.parametrize(
  ("trip_count", "times"),
  [("", 7), (', backend_config={"known_trip_count":{"n":"12"}}', 12)],
)
def test_loop_bodies_count_once_a_trip(trip_count, times):
  cost = estimate(
    "%loop = (s32[], f32[4]{0}) while(%a), condition=%cond, body=%body"
    + trip_count
  )
  assert cost.compute_seconds == pytest.approx((1000 + 100 * times) * 1e-9)


def test_a_loop_of_unknown_length_is_named():
  cost = estimate(
    "%loop = (s32[], f32[4]{0}) while(%a), condition=%fused, body=%body"
  )
  assert cost.uncosted["loop of unknown length, counted once"] == 1


@pytest.mark.parametrize("opcode", ["gather", "scatter", "sort"])
def test_a_small_gather_scatter_or_sort_is_named_too(opcode):
  cost = estimate(f"%small.5 = f32[2]{{0}} {opcode}(%a)")
  assert cost.uncosted["small"] == 1


def test_matrix_multiplications_are_told_from_vector_work():
  """Where a fusion calls another one that holds the product."""
  text = PROGRAM.replace(
    "ENTRY",
    """%inner (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %product = f32[4]{0} convolution(%p, %p)
}

%outer (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %call = f32[4]{0} fusion(%p), calls=%inner
}

ENTRY""",
  ).replace(
    "BODY",
    "  %m = f32[4]{0} fusion(%a), calls=%outer, "
    'backend_config={"estimated_cycles":"300"}',
  )
  cost = cost_lib.estimate(text, RATES, TORUS)
  assert cost.matmul_seconds == pytest.approx(300e-9)
  assert cost.compute_seconds == pytest.approx(1300e-9)


def test_synchronous_collective_is_exposed():
  """A megabyte around 16 chips, 15/16 of it twice over four links."""
  cost = estimate(
    "%all-reduce.1 = (f32[250000]{0}, f32[]) all-reduce(%a, %a), "
    "replica_groups={{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}}, to_apply=%add"
  )
  seconds = 2 * 15 / 16 * 1_000_004 / (4 * LINK)
  assert cost.collective_seconds == pytest.approx(seconds)
  assert cost.exposed_seconds == pytest.approx(seconds)
  assert cost.collective_bytes == {"all-reduce": 1_000_004}


def test_asynchronous_collective_hides_behind_the_work_between():
  """400 bytes over one link take 8 ns; a million, 20 us less 2 us of work."""
  small, large = (
    estimate(
      f"%cp-start = (f32[{size}]{{0}}, f32[{size}]{{0}}, u32[]) "
      "collective-permute-start(%a), source_target_pairs={{0,1}}",
      "%w = f32[4] fusion(%a), calls=%fused, "
      'backend_config={"estimated_cycles":"2000"}',
      f"%cp-done = f32[{size}]{{0}} collective-permute-done(%cp-start)",
    )
    for size in (100, 250_000)
  )
  assert small.exposed_seconds == 0
  assert small.collective_seconds == pytest.approx(8e-9)
  assert large.exposed_seconds == pytest.approx(20e-6 - 2e-6)


def test_collective_started_by_a_fusion_hides_too():
  """The all-gather is inside the fusion; 32,000 bytes of result."""
  cost = estimate(
    "%async-collective-start.5 = (bf16[1000]{0}, bf16[16000]{0}) fusion(%a), "
    "calls=%held",
    "%w = f32[4] fusion(%a), calls=%fused, "
    'backend_config={"estimated_cycles":"50"}',
    "%async-collective-done.5 = bf16[16000]{0} fusion(%w), calls=%fused",
  )
  seconds = 15 / 16 * 32_000 / (4 * LINK)
  assert cost.collective_bytes == {"all-gather": 32_000}
  assert cost.exposed_seconds == pytest.approx(seconds - 50e-9)


def test_collective_on_a_sparse_core_hides_too():
  cost = estimate(
    "%all-gather.7.call-start = ((bf16[1000]{0}, token[]), bf16[16000]{0}) "
    "call-start(%a, %t), to_apply=%sent",
    "%w = f32[4] fusion(%a), calls=%fused, "
    'backend_config={"estimated_cycles":"50"}',
    "%all-gather.7.call-done = bf16[16000]{0} "
    "call-done(%all-gather.7.call-start)",
  )
  seconds = 15 / 16 * 32_000 / (4 * LINK)
  assert cost.collective_count == {"all-gather": 1}
  assert cost.exposed_seconds == pytest.approx(seconds - 50e-9)


def test_the_largest_number_of_cycles_means_no_estimate():
  """As the compiler writes it for what a SparseCore looks up."""
  cost = estimate(
    "%g = (s32[9000]{0}, s32[9000]{0}) call-start(%a), to_apply=%looked"
  )
  assert cost.compute_seconds == pytest.approx(1000e-9)
  assert cost.uncosted == {"sorted": 1, "looked_up": 1}


def test_work_outside_fusions_is_not_overlooked():
  cost = estimate(
    "%alone.5 = f32[2000]{0} reduce(%a), to_apply=%add",
    "%scalar.5 = s32[]{:T(128)} add(%a, %a)",
    "%renamed.5 = f32[2000]{0} bitcast(%a)",
    '%p = s32[] custom-call(), custom_call_target="PrepareAsyncCallStart"',
  )
  assert cost.uncosted == {"sorted": 1, "alone": 1}


@pytest.mark.parametrize(
  ("num_flops", "num_bytes", "seconds"),
  [(4e9, 1e6, 40e-6), (4e6, 2e7, 20e-6)],
)
def test_kernel_with_a_cost_counts_at_its_roofline(
  num_flops, num_bytes, seconds
):
  """100 TFLOP/s and 1 TB/s; a collective may hide behind it."""
  cost = estimate(
    "%cp-start = (f32[250]{0}, f32[250]{0}) "
    "collective-permute-start(%a), source_target_pairs={{0,1}}",
    "%kernel.4 = f32[9]{0} custom-call(%a), "
    'custom_call_target="tpu_custom_call", '
    'backend_config={"custom_call_config":{"cost_estimate":{"flops":'
    f'"{num_flops:.0f}","transcendentals":"7","bytes_accessed":'
    f'"{num_bytes:.0f}","remote_bytes_transferred":"0"}}}}}}',
    "%cp-done = f32[250]{0} collective-permute-done(%cp-start)",
  )
  assert cost.kernel_seconds == pytest.approx(seconds)
  assert cost.seconds == pytest.approx(1e-6 + seconds)
  assert "kernel" not in cost.uncosted


def double(x_ref, y_ref):
  y_ref[...] = 2 * x_ref[...]


def compiled_kernel(cost_estimate):
  """A real kernel, compiled for a v5e of 4 chips."""
  mesh = Mesh(slices.describe_devices(slices.find_slice("v5e:2x2")), ("data",))
  rows = PartitionSpec("data")
  x = jax.ShapeDtypeStruct(
    (4096, 128), jnp.float32, sharding=NamedSharding(mesh, rows)
  )

  def local(x):
    return 1 + pl.pallas_call(double, x, cost_estimate=cost_estimate)(x)

  step = jax.jit(
    jax.shard_map(
      local, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False
    )
  )
  return step.lower(x).compile().as_text()


def test_real_kernel_counts_by_what_its_author_said():
  said = pl.CostEstimate(flops=10**10, transcendentals=0, bytes_accessed=10**6)
  cost = cost_lib.estimate(compiled_kernel(said), RATES, TORUS)
  assert cost.kernel_seconds == pytest.approx(100e-6)
  assert not cost.uncosted


def test_real_kernel_without_a_cost_is_named():
  cost = cost_lib.estimate(compiled_kernel(None), RATES, TORUS)
  assert cost.kernel_seconds == 0
  assert sum(cost.uncosted.values()) == 1


def test_kernel_without_a_cost_is_named():
  cost = estimate(
    "%kernel.4 = f32[9]{0} custom-call(%a), "
    'custom_call_target="tpu_custom_call"'
  )
  assert cost.uncosted == {"sorted": 1, "kernel": 1}


def test_reduce_scatter_counts_its_larger_side():
  cost = estimate(
    "%rs = bf16[100]{0} reduce-scatter(%a), replica_groups=[2,8]<=[16]"
  )
  assert cost.collective_bytes == {"reduce-scatter": 1600}


def test_an_all_reduce_that_keeps_a_part_is_a_reduce_scatter():
  cost = estimate(
    "%fusion.7 = (bf16[10]{0}, bf16[20]{0}) fusion(%a, %a), kind=kCustom, "
    "calls=%all-reduce-scatter.3"
  )
  seconds = 15 / 16 * 960 / (4 * LINK)
  assert cost.collective_bytes == {"reduce-scatter": 960}
  assert cost.exposed_seconds == pytest.approx(seconds)
  assert cost.uncosted == {"sorted": 1}


@pytest.mark.parametrize(
  ("shape", "size"),
  [
    ("f32[2,3]{1,0:T(8,128)S(1)}", 24),
    ("(bf16[8]{0}, pred[3], /*index=5*/s32[])", 16 + 3 + 4),
    ("s4[10]", 5),
    ("token[]", 0),
  ],
)
def test_bytes_of_a_type(shape, size):
  assert program.shape_bytes(shape) == size


def test_bytes_of_one_memory():
  shape = "(f32[10]{0:T(128)S(1)}, f32[5]{0:T(128)}, u32[]{:S(2)})"
  assert program.shape_bytes(shape, memory_space=0) == 20


@pytest.mark.parametrize(
  ("groups", "members"),
  [
    ("replica_groups={{0,2},{1,3}}", (0, 2)),
    ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
    ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x=1", (0, 1, 2, 3)),
    ("replica_groups=mesh['a'=4,'b'=2] {'a'}", (0, 2, 4, 6)),
    ("nothing", None),
  ],
)
def test_members_of_a_group(groups, members):
  assert program.first_group(groups) == members


def test_kernels_whose_instructions_take_longer_count_by_them():
  """700 bundles a step, 16 steps, a cycle each.

  Equal kernels are compiled once: the second counts as the first, and the
  third, which is another one and in no dump, at its roofline.
  """
  kernels = [
    f"%kernel.{i} = f32[9]{{0}} custom-call(%a), "
    'custom_call_target="tpu_custom_call", '
    'frontend_attributes={kernel_metadata={\n"grid_steps":"16"\n}}, '
    f'backend_config={{"custom_call_config":{{"body":"{body}",'
    '"cost_estimate":{"flops":"1000000",'
    '"transcendentals":"7","bytes_accessed":"1000","remote":"0"}}}'
    for i, body in enumerate(("AAAA", "AAAA", "BBBB"))
  ]
  cost = estimate(*kernels, bundles={"kernel.0": 700})
  assert cost.kernel_seconds == pytest.approx(2 * 16 * 700e-9 + 1e-8)
  assert cost.roofline_seconds == pytest.approx(3e-8)
  assert estimate(*kernels).kernel_seconds == pytest.approx(3e-8)


def test_lookups_and_scatters_count_by_the_row():
  text = PROGRAM.replace(
    "ENTRY",
    """%found (t: f32[50,768], i: s32[2,8]) -> f32[2,8,768] {
  %t = f32[50,768]{1,0} parameter(0)
  %i = s32[2,8]{1,0} parameter(1)
  ROOT %gather.1 = f32[2,8,768]{2,1,0} gather(%t, %i), offset_dims={2}, \
slice_sizes={1,768}
}

%added (t: f32[50,768], i: s32[2,8], u: f32[2,8,768]) -> f32[50,768] {
  %t = f32[50,768]{1,0} parameter(0)
  %i = s32[2,8]{1,0} parameter(1)
  %u = f32[2,8,768]{2,1,0} parameter(2)
  ROOT %scatter.1 = f32[50,768]{1,0} scatter(%t, %i, %u), \
update_window_dims={2}, inserted_window_dims={0}
}

ENTRY""",
  ).replace(
    "BODY",
    "  %gather_fusion = f32[2,8,768]{2,1,0} fusion(%a, %a), calls=%found\n"
    "  %scatter_fusion = f32[50,768]{1,0} fusion(%a), calls=%added",
  )
  cost = cost_lib.estimate(text, RATES, TORUS)
  assert cost.row_seconds == pytest.approx(16 * (15 + 73) * 1e-9)
  assert cost.uncosted == {"sorted": 1}
