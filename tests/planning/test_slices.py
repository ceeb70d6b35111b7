"""Claims about TPU slices: their names, and what libtpu knows of them."""

import re

import pytest

from bert_jax.errors import UserError
from bert_jax.planning import slices
from bert_jax.training import flops


@pytest.mark.parametrize(
  ("name", "generation", "shape"),
  [
    ("v2-8", "v2", (2, 2)),
    ("v3-32", "v3", (4, 4)),
    ("v5e:4x4", "v5e", (4, 4)),
    ("v5litepod-16", "v5e", (4, 4)),
    ("v6e-16", "v6e", (4, 4)),
    ("V6E:16x16", "v6e", (16, 16)),
    ("v4-32", "v4", (2, 2, 4)),
    ("v5p-32", "v5p", (2, 2, 4)),
    ("v5p:2x2x4", "v5p", (2, 2, 4)),
    ("tpu7x-16", "tpu7x", (2, 2, 2)),
    ("TPU7x:4x4x4", "tpu7x", (4, 4, 4)),
  ],
)
def test_a_slice_is_found_by_shape_and_by_name(name, generation, shape):
  """All names but those of v5e and v6e count TensorCores, two a chip."""
  found = slices.find_slice(name)
  assert (found.generation.name, found.shape) == (generation, shape)


def test_no_two_slices_share_a_name():
  aliases = [a for s in slices.known_slices() for a in s.aliases]
  assert len(aliases) == len(set(aliases))


@pytest.mark.parametrize("name", ["v5e:3x5", "v4-33", "h100", "", "7"])
def test_an_unknown_slice_lists_the_known_ones(name):
  with pytest.raises(UserError) as e:
    slices.find_slices(name)
  lines = str(e.value).splitlines()
  assert repr(name) in lines[0]
  heads = [line.split(":")[0].strip() for line in lines[1:]]
  assert heads == ["v2", "v3", "v4", "v5e", "v5p", "v6e", "tpu7x"]
  assert "v5e:2x2, 2x4, 4x4, 4x8," in lines[4]
  assert "v5litepod-4, 8, 16, 32," in lines[4]


def test_a_number_means_every_slice_of_so_many_chips():
  found = slices.find_slices("16, v5e-16, v4-8")
  assert [s.num_chips for s in found] == [16] * 7 + [4]


def test_every_generation_has_slices_of_4_to_256_chips():
  for generation in slices.GENERATIONS:
    sizes = [
      s.num_chips for s in slices.known_slices() if s.generation is generation
    ]
    assert sizes == sorted(sizes)
    assert {4, 16, 64, 256} <= set(sizes)


@pytest.mark.parametrize(
  ("name", "rings"),
  [
    ("v5e:4x4", (False, False)),
    ("v5e:8x16", (False, True)),
    ("v5e:16x16", (True, True)),
    ("v4:2x2x1", (False, False, False)),
    ("v4:2x4x4", (False, False, False)),
    ("v4:4x4x4", (True, True, True)),
  ],
)
def test_dimensions_that_are_rings(name, rings):
  """v5e closes rings of 16 chips; v4 has them from a whole cube on."""
  assert slices.find_slice(name).rings == rings


@pytest.mark.parametrize(
  ("name", "description"),
  [
    ("tpu7x-16", "tpu7x:2x2x2 (tpu7x-16, 8 chips)"),
    ("v5e:4x4", "v5e:4x4 (v5litepod-16, 16 chips)"),
  ],
)
def test_a_slice_is_described_with_its_chips(name, description):
  assert slices.find_slice(name).description == description


def test_names_that_count_cores_say_so():
  lines = slices.format_known_slices().splitlines()
  counting = [line.split(":")[0].strip() for line in lines if "cores" in line]
  assert counting == ["v2", "v3", "v4", "v5p", "tpu7x"]


@pytest.mark.parametrize("generation", slices.GENERATIONS)
def test_libtpu_describes_the_devices_of_a_generation(generation, capfd):
  """Kind and number are libtpu's; it has nothing to complain of."""
  for shape in (generation.shapes[0], generation.shapes[-1]):
    planned = slices.Slice(generation, shape)
    devices = slices.describe_devices(planned)
    assert {d.device_kind for d in devices} == {generation.device_kind}
    assert len(devices) == planned.num_devices
    assert len({tuple(d.coords) for d in devices}) == planned.num_chips
  assert capfd.readouterr().err == ""


def test_a_device_has_its_share_of_a_chip():
  """TPU7x: two devices a chip, 2307 TFLOP/s and six links together."""
  rates = slices.find_slice("tpu7x:4x4x4").rates
  assert rates.peak_flops == 2307e12 / 2
  assert rates.hbm_bytes_per_second == 7380e9 / 2
  planned = slices.find_slice("tpu7x:2x2x1")
  torus = planned.torus(slices.describe_devices(planned))
  assert torus.link_bytes_per_second == 100e9 / 2


def test_clocks_drive_a_whole_number_of_matrix_units():
  """A unit is 128 or, from v6e on, 256 square and does a row a cycle."""
  for generation in slices.GENERATIONS:
    peak = flops.PEAK_FLOPS[generation.device_kind]
    side = 256 if re.match("v6e|tpu7x", generation.name) else 128
    units = peak / (2 * side**2 * generation.clock_hz)
    assert units == pytest.approx(round(units), rel=0.01)
