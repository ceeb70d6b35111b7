"""The TPU slices that can be planned for, and what one chip of each can do.

Sources of the figures, all of the vendor: peak, memory bandwidth and links of
v4 and later are Google Cloud's pages on each generation (its "bidirectional"
bandwidth of a chip, over twice the links, is that of a link one way); links of
v2 and v3 are Jouppi et al. 2020, doi 10.1145/3360307, table 3; those of v4
Jouppi et al. 2023, arXiv 2304.01433. The memory of a device is what libtpu
0.0.42.1 lets a program use, as its own out-of-memory message says. The clock
turns the compiler's cycles into seconds; it is the one at which a chip's
matrix units reach its peak. That of TPU7x, and what the links of v2 and v3
carry one way, could not be checked against a second source.
"""

import dataclasses
import math
import os
import re

from jax.experimental import topologies

from bert_jax.errors import UserError
from bert_jax.hlo import cost, links
from bert_jax.training import flops

# For a process that compiles for devices that it does not have: no metadata
# server is asked, two plans may run at once, and libtpu has no reason to
# complain that this machine is no TPU host.
LIBTPU_SETTINGS = {
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  # The compiler overflows its stacks on narrow models for TPU7x.
  "LIBTPU_INIT_ARGS": "--fibers_default_thread_stack_size=4194304",
}


def find_slices(names):
  """Finds one or several slices.

  Args:
    names: separated by commas; each as for `find_slice`, or a number of
      chips, "16", for every generation's slice of so many.

  Returns:
    list of `Slice`, none of them twice.

  Raises:
    UserError: there is no such slice; the message lists the known ones.
  """
  found = []
  for name in filter(None, map(str.strip, names.split(","))):
    if name.isdigit():
      alike = [s for s in known_slices() if s.num_chips == int(name)]
    else:
      alike = [find_slice(name)]
    found += alike or [_refuse(name)]
  return list(dict.fromkeys(found)) or _refuse(names)


def find_slice(name):
  """Finds a slice by its shape or by the name that users rent it under.

  Args:
    name: "v5e:4x4", "v4:2x2x4", or "v5litepod-16", "v4-32".

  Returns:
    `Slice`.

  Raises:
    UserError: there is no such slice; the message lists the known ones.
  """
  for known in known_slices():
    if name.lower() in known.aliases:
      return known
  return _refuse(name)


def known_slices():
  """Returns every `Slice`, oldest generation first, smallest first."""
  return [
    Slice(generation, shape)
    for generation in GENERATIONS
    for shape in generation.shapes
  ]


def format_known_slices():
  """Returns a table of the known slices: shapes, and the names of the same."""
  lines = []
  for generation in GENERATIONS:
    slices = [s for s in known_slices() if s.generation is generation]
    shapes = ", ".join(s.text_shape for s in slices)
    sizes = ", ".join(s.rented_name.rpartition("-")[2] for s in slices)
    shapes = f"{generation.name}:{shapes}"
    lines.append(f"  {shapes:54} {generation.rented_names[0]}-{sizes}")
  return "\n".join(lines)


def _refuse(name):
  raise UserError(
    f"--topology is {name!r}; expected a shape or a name of these (4 to 256 "
    f"chips), several with commas, or a number of chips:\n"
    + format_known_slices()
  )


def describe_devices(planned):
  """Asks libtpu for the devices of a slice that nobody holds.

  Args:
    planned: `Slice`.

  Returns:
    list of jax devices to compile for, `planned.num_devices` of them.

  Raises:
    UserError: libtpu is not installed, or does not know the slice.
  """
  for name, value in LIBTPU_SETTINGS.items():
    os.environ.setdefault(name, value)
  generation = planned.generation
  name = f"{generation.libtpu_name}:{planned.text_shape}"
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
    name: before the shape, as we print it.
    aliases: other names before the shape.
    rented_names: names before the size of a slice, the usual one first.
    size_unit: what such a size counts for each chip: TensorCores or chips.
    libtpu_name: libtpu's own.
    device_kind: what jax calls a device.
    devices_per_chip: jax devices.
    megacore: whether a chip's two cores work as one device.
    shapes: known slices, 4 to 256 chips.
    full_dim: size from which on a dimension is a ring and no line; where
      `full_cube` is true, all dimensions must be as long.
    full_cube: see `full_dim`.
    hbm_bytes: memory of a device that a program may use.
    hbm_bytes_per_second: of a chip.
    link_bytes_per_second: of one link of a chip, one way.
    clock_hz: cycles a second that the compiler counts.
  """

  name: str
  aliases: tuple
  rented_names: tuple
  size_unit: int
  libtpu_name: str
  device_kind: str
  devices_per_chip: int
  megacore: bool
  shapes: tuple
  full_dim: int
  full_cube: bool
  hbm_bytes: float
  hbm_bytes_per_second: float
  link_bytes_per_second: float
  clock_hz: float


@dataclasses.dataclass(frozen=True)
class Slice:
  """Chips that are rented together.

  Attributes:
    generation: `Generation`.
    shape: chips a dimension, tuple of int.
  """

  generation: Generation
  shape: tuple

  def __str__(self):
    return f"{self.generation.name}:{self.text_shape}"

  @property
  def text_shape(self):
    """Such as "4x4"."""
    return "x".join(map(str, self.shape))

  @property
  def num_chips(self):
    """What is paid for."""
    return math.prod(self.shape)

  @property
  def num_devices(self):
    """What a mesh is made of."""
    return self.num_chips * self.generation.devices_per_chip

  @property
  def rented_name(self):
    """Such as "v5litepod-16"."""
    size = self.num_chips * self.generation.size_unit
    return f"{self.generation.rented_names[0]}-{size}"

  @property
  def aliases(self):
    """All names that users may say, in lower case."""
    generation = self.generation
    size = self.num_chips * generation.size_unit
    return [
      f"{name}:{self.text_shape}"
      for name in (generation.name, *generation.aliases)
    ] + [f"{name}-{size}" for name in generation.rented_names]

  @property
  def rings(self):
    """Tells of each dimension whether its ends are joined."""
    full = self.generation.full_dim
    shortest = min(self.shape) if self.generation.full_cube else full
    return tuple(min(shortest, size) >= full for size in self.shape)

  def torus(self, devices, *, in_the_middle=False):
    """Returns the links between devices as a program counts them.

    Args:
      devices: the jax devices of a mesh, in its order.
      in_the_middle: as for a chip in the middle, whose lines end elsewhere. A
        collective is as slow as the chip with the fewest links, at a corner.

    Returns:
      `links.Torus`.
    """
    generation = self.generation
    return links.Torus(
      coords=tuple(tuple(device.coords) for device in devices),
      # Flat slices have a third coordinate, always 0.
      rings=(True,) * 3 if in_the_middle else (*self.rings, False)[:3],
      link_bytes_per_second=generation.link_bytes_per_second
      / generation.devices_per_chip,
    )

  @property
  def rates(self):
    """`cost.Rates` of a device."""
    generation = self.generation
    share = generation.devices_per_chip
    return cost.Rates(
      clock_hz=generation.clock_hz,
      peak_flops=flops.PEAK_FLOPS[generation.device_kind],
      hbm_bytes_per_second=generation.hbm_bytes_per_second / share,
      num_cores=2 if generation.megacore else 1,
    )


_GIB = 2**30
_SQUARES = ((2, 2), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_FLAT = ((2, 2), (2, 4), *_SQUARES[1:])
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
    name="v2",
    aliases=(),
    rented_names=("v2",),
    size_unit=2,
    libtpu_name="v2",
    device_kind="TPU v2",
    devices_per_chip=2,
    megacore=False,
    # Nobody rents 4x8.
    shapes=((2, 2), (4, 4), (8, 8), (8, 16), (16, 16)),
    full_dim=16,
    full_cube=False,
    hbm_bytes=7.48 * _GIB,
    hbm_bytes_per_second=700e9,
    link_bytes_per_second=62e9,
    clock_hz=0.70e9,
  ),
  Generation(
    name="v3",
    aliases=(),
    rented_names=("v3",),
    size_unit=2,
    libtpu_name="v3",
    device_kind="TPU v3",
    devices_per_chip=2,
    megacore=False,
    shapes=_SQUARES,
    full_dim=32,
    full_cube=False,
    hbm_bytes=15.48 * _GIB,
    hbm_bytes_per_second=900e9,
    link_bytes_per_second=82e9,
    clock_hz=0.94e9,
  ),
  Generation(
    name="v4",
    aliases=(),
    rented_names=("v4",),
    size_unit=2,
    libtpu_name="v4",
    device_kind="TPU v4",
    devices_per_chip=1,
    megacore=True,
    shapes=_CUBES,
    full_dim=4,
    full_cube=True,
    hbm_bytes=30.75 * _GIB,
    hbm_bytes_per_second=1228e9,
    link_bytes_per_second=50e9,
    clock_hz=1.05e9,
  ),
  Generation(
    name="v5e",
    aliases=("v5litepod",),
    rented_names=("v5litepod", "v5e"),
    size_unit=1,
    libtpu_name="v5e",
    device_kind="TPU v5 lite",
    devices_per_chip=1,
    megacore=False,
    shapes=_FLAT,
    full_dim=16,
    full_cube=False,
    hbm_bytes=15.75 * _GIB,
    hbm_bytes_per_second=819e9,
    link_bytes_per_second=50e9,
    clock_hz=1.5e9,
  ),
  Generation(
    name="v5p",
    aliases=("v5",),
    rented_names=("v5p",),
    size_unit=2,
    libtpu_name="v5",
    device_kind="TPU v5",
    devices_per_chip=1,
    megacore=True,
    shapes=_CUBES,
    full_dim=4,
    full_cube=True,
    hbm_bytes=95.74 * _GIB,
    hbm_bytes_per_second=2765e9,
    link_bytes_per_second=100e9,
    clock_hz=1.75e9,
  ),
  Generation(
    name="v6e",
    aliases=(),
    rented_names=("v6e",),
    size_unit=1,
    libtpu_name="v6e",
    device_kind="TPU v6 lite",
    devices_per_chip=1,
    megacore=False,
    shapes=_FLAT,
    full_dim=16,
    full_cube=False,
    hbm_bytes=31.25 * _GIB,
    hbm_bytes_per_second=1600e9,
    link_bytes_per_second=100e9,
    clock_hz=1.75e9,
  ),
  Generation(
    name="tpu7x",
    aliases=("v7x", "ironwood"),
    rented_names=("tpu7x",),
    size_unit=2,
    libtpu_name="tpu7x",
    device_kind="TPU7x",
    devices_per_chip=2,
    megacore=False,
    shapes=_CUBES,
    full_dim=4,
    full_cube=True,
    hbm_bytes=94.75 * _GIB,
    hbm_bytes_per_second=7380e9,
    link_bytes_per_second=100e9,
    clock_hz=2.2e9,
  ),
)
