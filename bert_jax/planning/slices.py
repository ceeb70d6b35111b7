"""The TPU slices that can be planned for: their shapes, names and links."""

import dataclasses
import math
import os
import re

from jax.experimental import topologies

from bert_jax.errors import UserError
from bert_jax.hlo import cost, links
from bert_jax.planning.generations import GENERATIONS, Generation
from bert_jax.training import flops

# Environment to compile for TPUs on a machine without any: libtpu asks no
# metadata server, allows two processes at once, and does not warn that this
# machine is no TPU host.
LIBTPU_SETTINGS = {
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  # The default stack is too small for narrow models on TPU7x.
  "LIBTPU_INIT_ARGS": "--fibers_default_thread_stack_size=4194304",
}


def find_slices(names):
  """Finds one or several slices.

  Args:
    names: separated by commas; each as for `find_slice`, or a number of
      chips, "16", for the slices of that size of every generation.

  Returns:
    list of `Slice` without duplicates.

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
  """Finds a slice by its shape or by the name of its accelerator type.

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
  """Formats the known slices as a table of shapes and accelerator types."""
  lines = []
  for generation in GENERATIONS:
    slices = [s for s in known_slices() if s.generation is generation]
    shapes = ", ".join(s.text_shape for s in slices)
    sizes = ", ".join(s.rented_name.rpartition("-")[2] for s in slices)
    shapes = f"{generation.name}:{shapes}"
    note = " (counts cores, 2 a chip)" if generation.size_unit == 2 else ""
    lines.append(f"  {shapes:54} {generation.rented_names[0]}-{sizes}{note}")
  return "\n".join(lines)


def _refuse(name):
  raise UserError(
    f"--topology is {name!r}; expected a shape or a name of these (4 to 256 "
    f"chips), several with commas, or a number of chips:\n"
    + format_known_slices()
  )


def describe_devices(planned):
  """Asks libtpu for the devices of a slice, which need not exist.

  Args:
    planned: `Slice`.

  Returns:
    list of `planned.num_devices` jax devices to compile for.

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
class Slice:
  """A TPU slice: chips that are rented together.

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
    """Chips, by which a slice is paid for."""
    return math.prod(self.shape)

  @property
  def description(self):
    """Such as "v5e:4x4 (v5litepod-16, 16 chips)".

    Rented names of some generations count cores: tpu7x-16 has 8 chips.
    """
    return f"{self} ({self.rented_name}, {self.num_chips} chips)"

  @property
  def num_devices(self):
    """jax devices, of which a mesh is made; two a chip in some generations."""
    return self.num_chips * self.generation.devices_per_chip

  @property
  def rented_name(self):
    """Such as "v5litepod-16"."""
    size = self.num_chips * self.generation.size_unit
    return f"{self.generation.rented_names[0]}-{size}"

  @property
  def aliases(self):
    """All names that a user may give, in lower case."""
    generation = self.generation
    size = self.num_chips * generation.size_unit
    return [
      f"{name}:{self.text_shape}"
      for name in (generation.name, *generation.aliases)
    ] + [f"{name}-{size}" for name in generation.rented_names]

  @property
  def rings(self):
    """Whether each dimension is a ring (wraps around), tuple of bool."""
    full = self.generation.full_dim
    shortest = min(self.shape) if self.generation.full_cube else full
    return tuple(min(shortest, size) >= full for size in self.shape)

  def torus(self, devices, *, in_the_middle=False):
    """Returns the positions and links of a mesh's devices.

    Args:
      devices: the jax devices of a mesh, in its order.
      in_the_middle: if True, counts the links of a chip in the middle of the
        slice, as if every dimension were a ring. A collective is really as slow
        as the chip with the fewest links, at a corner.

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
