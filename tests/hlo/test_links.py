"""Times of collectives on a torus, computed by hand."""

import dataclasses

import pytest

from bert_jax.hlo import links

# 4 x 4 chips without rings, numbered row by row, as in v5e:4x4.
SQUARE = links.Torus(
  coords=tuple((i // 4, i % 4, 0) for i in range(16)),
  rings=(False, False, False),
  link_bytes_per_second=50e9,
)
RINGS = dataclasses.replace(SQUARE, rings=(True, True, False))
ALL = tuple(range(16))


@pytest.mark.parametrize(
  ("torus", "group", "expected"),
  [
    (SQUARE, ALL, 2),
    (RINGS, ALL, 4),
    # A row of four chips ends in one link each, and is a ring of two.
    (SQUARE, (0, 1, 2, 3), 1),
    (RINGS, (0, 1, 2, 3), 2),
    # Two neighbours have one link, ring or not.
    (SQUARE, (0, 1), 1),
    (RINGS, (0, 1), 1),
    # A block of 2 x 2 has one in each dimension.
    (RINGS, (0, 1, 4, 5), 2),
    # The links between every second chip serve the pairs between as well.
    (SQUARE, (0, 2), 1 / 2),
  ],
)
def test_a_group_has_the_links_of_its_own_dimensions(torus, group, expected):
  n = len(group)
  seconds = links.collective_seconds("all-gather", 1e6, group, torus)
  assert seconds == pytest.approx((n - 1) / n * 1e6 / (expected * 50e9))


def test_an_all_reduce_sends_twice_what_a_gather_does():
  reduce, gather = (
    links.collective_seconds(kind, 1e6, ALL, SQUARE)
    for kind in ("all-reduce", "all-gather")
  )
  assert reduce == pytest.approx(2 * gather)


def test_an_all_to_all_must_cross_the_middle():
  """Half of each half's bytes cross, 4 MB over four links of 50 GB/s."""
  seconds = links.collective_seconds("all-to-all", 1e6, ALL, SQUARE)
  assert seconds == pytest.approx(8 * 1e6 / 2 / (4 * 50e9))


def test_a_permute_takes_one_link():
  seconds = links.collective_seconds("collective-permute", 1e6, (0, 1), RINGS)
  assert seconds == pytest.approx(1e6 / 50e9)


def test_devices_of_one_chip_send_at_a_links_speed():
  chip = links.Torus(((0, 0, 0),) * 2, (False,) * 3, 50e9)
  seconds = links.collective_seconds("all-gather", 1e6, (0, 1), chip)
  assert seconds == pytest.approx(0.5e6 / 50e9)
