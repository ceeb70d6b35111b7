"""The generations of TPUs, and what one chip of each can do.

Sources, all of the vendor: peak, memory bandwidth and links of v4 and later are
Google Cloud's pages on each generation (its "bidirectional" bandwidth of a
chip, divided by twice the number of links, is that of one link one way); links
and TDP of v2 and v3 are Jouppi et al. 2020, doi 10.1145/3360307, table 3; links
of v4, and its highest measured power (its TDP is not published), Jouppi et al.
2023, arXiv 2304.01433. For v5e and later no power is published. The memory of a
device is what libtpu 0.0.42.1 lets a program use, as its own out-of-memory
message says. The clock turns the compiler's cycles into seconds; it is the one
at which a chip's matrix units reach its peak. That of TPU7x, and what the links
of v2 and v3 carry one way, could not be checked against a second source.
"""

import dataclasses


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
    watts: of a chip, for the energy of a run; None where none is published.
    watts_source: what that figure is and who published it.
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
  watts: float | None = None
  watts_source: str = ""


_GIB = 2**30
_TDP_OF_2020 = "its TDP, Jouppi et al. 2020"
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
    watts=280,
    watts_source=_TDP_OF_2020,
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
    watts=450,
    watts_source=_TDP_OF_2020,
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
    watts=192,
    watts_source="highest measured, Jouppi et al. 2023",
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
