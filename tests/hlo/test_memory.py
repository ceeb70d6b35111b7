"""Which values of a schedule count as activations."""

import jax
import jax.numpy as jnp
import pytest

from bert_jax.hlo import memory
from bert_jax.planning import slices

FORWARD = 'metadata={op_name="jit(train_step)/jvp(Bert)/dense"}'
BACKWARD = 'metadata={op_name="jit(train_step)/transpose(jvp(Bert))/dense"}'


def count(*lines):
  body = "\n".join(f"  {line}" for line in lines)
  return memory.count_activations(
    f"HloModule m\n\nENTRY %main (a: f32[9]) -> f32[9] {{\n{body}\n}}\n"
  )


def test_only_what_the_backward_pass_reads_counts():
  """Two of the forward pass count; one has no reader left, one is in VMEM."""
  assert count(
    "%a = f32[9]{0} parameter(0)",
    f"%kept = f32[1000]{{0}} fusion(%a), {FORWARD}",
    f"%used = f32[7000]{{0}} fusion(%kept), {FORWARD}",
    f"%near = f32[300]{{0:T(128)S(1)}} fusion(%used), {FORWARD}",
    f"%pair = (f32[500]{{0}}, f32[200]{{0:S(1)}}) fusion(%used), {FORWARD}",
    "%first = f32[500]{0} get-tuple-element(%pair), index=0",
    f"%weights = f32[600]{{0}} copy(%a), {BACKWARD}",
    f"%b1 = f32[8]{{0}} fusion(%kept, %near, %weights), {BACKWARD}",
    f"%b2 = f32[8]{{0}} fusion(%first, %b1), {BACKWARD}",
  ) == 4 * (1000 + 500)


def test_a_prefetch_for_the_backward_pass_keeps_its_origin():
  assert (
    count(
      "%a = f32[9]{0} parameter(0)",
      f"%kept = f32[1000]{{0}} fusion(%a), {FORWARD}",
      "%s = (f32[1000]{0:S(1)}, f32[1000]{0}, u32[]{:S(2)}) copy-start(%kept)",
      "%d = f32[1000]{0:S(1)} copy-done(%s)",
      f"%b = f32[8]{{0}} fusion(%d), {BACKWARD}",
    )
    == 4000
  )


def test_a_prefetch_in_pieces_does_too():
  assert (
    count(
      "%a = f32[9]{0} parameter(0)",
      f"%kept = f32[1000]{{0}} fusion(%a), {FORWARD}",
      "%s = ((f32[1000]{0}), f32[500]{0:S(1)}, s32[]) slice-start(%kept)",
      "%d = f32[500]{0:S(1)} slice-done(%s)",
      "%all = f32[1000]{0:S(1)} custom-call(%d), "
      'custom_call_target="ConcatBitcast"',
      f"%b = f32[8]{{0}} fusion(%all), {BACKWARD}",
    )
    == 4000
  )


def test_values_that_are_never_alive_together_do_not_add_up():
  """As those of several micro-batches."""
  assert (
    count(
      "%a = f32[9]{0} parameter(0)",
      f"%one = f32[1000]{{0}} fusion(%a), {FORWARD}",
      f"%b1 = f32[8]{{0}} fusion(%one), {BACKWARD}",
      f"%two = f32[900]{{0}} fusion(%b1), {FORWARD}",
      f"%b2 = f32[8]{{0}} fusion(%two), {BACKWARD}",
    )
    == 4000
  )


def test_a_steps_bytes_are_counted_without_its_arguments():
  """A real program: 256 MiB in, as many out, and a matrix between."""
  (device, *_) = slices.describe_devices(slices.find_slice("v5e:2x2"))
  sharding = jax.sharding.SingleDeviceSharding(device)
  x = jax.ShapeDtypeStruct((8192, 8192), jnp.float32, sharding=sharding)
  compiled = jax.jit(lambda x: jnp.tanh(x @ x) @ x).lower(x).compile()
  made = memory.count_step_bytes(compiled, "tpu")
  assert made == pytest.approx((256 + 128) * 2**20, rel=0.01)
