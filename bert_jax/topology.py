"""The TPU slices that can be planned for, and what one chip of each can do.

Figures per chip are as published by the vendor; those of v4's links are not
checked. The clocks turn the compiler's cycles into seconds.
"""

import dataclasses
import math
import os
import re

from jax.experimental import topologies

from bert_jax.errors import UserError


def find_slice(name):
  """Finds a slice by its shape or by the name that users rent it under.

  Args:
    name: "v5e:4x4", "v4:2x2x4", or "v5litepod-16", "v4-32".

  Returns:
    (`Generation`, shape), the shape in chips a dimension, a tuple of int.

  Raises:
    UserError: there is no such slice; the message lists the known ones.
  """
  for generation in GENERATIONS:
    for shape in generation.shapes:
      text = "x".join(map(str, shape))
      names = [f"{prefix}:{text}" for prefix in generation.prefixes]
      count = math.prod(shape) * generation.name_unit
      names += [f"{prefix}-{count}" for prefix in generation.slice_prefixes]
      if name.lower() in names:
        return generation, shape
  raise UserError(f"--topology is {name!r}; expected one of {known_slices()}")


def known_slices():
  """Returns the known slices as text: "v5e:2x2 (v5litepod-4), ..."."""
  return ", ".join(
    f"{generation.prefixes[0]}:{'x'.join(map(str, shape))} "
    f"({generation.slice_prefixes[0]}-"
    f"{math.prod(shape) * generation.name_unit})"
    for generation in GENERATIONS
    for shape in generation.shapes
  )


def describe_devices(generation, shape):
  """Asks libtpu for the devices of a slice that nobody holds.

  Args:
    generation: `Generation`.
    shape: chips a dimension.

  Returns:
    list of jax devices to compile for.

  Raises:
    UserError: libtpu is not installed, or does not know the slice.
  """
  # No metadata server is asked, and a plan may run beside another one.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  name = f"{generation.libtpu_name}:{'x'.join(map(str, shape))}"
  options = {}
  if generation.megacore:
    options["chip_config_name"] = "megacore"
  try:
    described = topologies.get_topology_desc(name, platform="tpu", **options)
  except Exception as e:
    reason = re.sub(r"\s+", " ", str(e))[:200]
    raise UserError(
      f"libtpu cannot describe {name}: {reason} "
      "(it comes with pip install jax[tpu])"
    ) from None
  return list(described.devices)


@dataclasses.dataclass(frozen=True)
class Generation:
  """One kind of chip.

  Attributes:
    prefixes: names before the shape, as users write them.
    slice_prefixes: names before the size of a slice.
    name_unit: what a slice's name counts for each chip: TensorCores or chips.
    libtpu_name: libtpu's own.
    megacore: whether a chip's two cores work as one device.
    shapes: known slices, 4 to 256 chips.
    peak_flops: bfloat16 FLOP/s a chip.
    hbm_bytes: a chip's memory.
    hbm_bytes_per_second: of a chip.
    num_links: inter-chip links of a chip.
    link_bytes_per_second: of one link, one way.
    clock_hz: cycles a second that the compiler counts.
  """

  prefixes: tuple
  slice_prefixes: tuple
  name_unit: int
  libtpu_name: str
  megacore: bool
  shapes: tuple
  peak_flops: float
  hbm_bytes: float
  hbm_bytes_per_second: float
  num_links: int
  link_bytes_per_second: float
  clock_hz: float


_FLAT = ((2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_CUBES = (
  (2, 2, 1),
  (2, 2, 2),
  (2, 2, 4),
  (2, 4, 4),
  (4, 4, 4),
  (4, 4, 8),
  (4, 8, 8),
)
GENERATIONS = (
  Generation(
    prefixes=("v5e", "v5litepod"),
    slice_prefixes=("v5litepod", "v5e"),
    name_unit=1,
    libtpu_name="v5e",
    megacore=False,
    shapes=_FLAT,
    peak_flops=197e12,
    hbm_bytes=16e9,
    hbm_bytes_per_second=819e9,
    num_links=4,
    link_bytes_per_second=50e9,
    clock_hz=1.5e9,
  ),
  Generation(
    prefixes=("v6e",),
    slice_prefixes=("v6e",),
    name_unit=1,
    libtpu_name="v6e",
    megacore=False,
    shapes=_FLAT,
    peak_flops=918e12,
    hbm_bytes=32e9,
    hbm_bytes_per_second=1600e9,
    num_links=4,
    link_bytes_per_second=100e9,
    clock_hz=1.75e9,
  ),
  Generation(
    prefixes=("v5p", "v5"),
    slice_prefixes=("v5p",),
    name_unit=2,
    libtpu_name="v5",
    megacore=True,
    shapes=_CUBES,
    peak_flops=459e12,
    hbm_bytes=95e9,
    hbm_bytes_per_second=2765e9,
    num_links=6,
    link_bytes_per_second=100e9,
    clock_hz=1.75e9,
  ),
  Generation(
    prefixes=("v4",),
    slice_prefixes=("v4",),
    name_unit=2,
    libtpu_name="v4",
    megacore=True,
    shapes=_CUBES,
    peak_flops=275e12,
    hbm_bytes=32e9,
    hbm_bytes_per_second=1228e9,
    num_links=6,
    link_bytes_per_second=50e9,
    clock_hz=1.05e9,
  ),
)
