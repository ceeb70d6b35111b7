"""Models the time of a collective on a torus of chips (ICI).

With `bytes` of the larger of operand and result, and n devices in a group:

  all-reduce           2 (n-1)/n bytes    over the group's links
  all-gather,
  reduce-scatter         (n-1)/n bytes    over the group's links
  all-to-all             (n-1)/n bytes    the same, or a quarter of n times the
                                          bytes over the links of a cut through
                                          the middle, whichever takes longer
  collective-permute             bytes    over one link

A group uses the links of the dimensions that it spans: two a chip in a ring;
one at the end of a line, or between two neighbours. Groups whose chips
interleave in a dimension share its links.
"""

import dataclasses


def collective_seconds(kind, num_bytes, group, torus):
  """Returns the time that a collective takes.

  Args:
    kind: one of `program.COLLECTIVES`.
    num_bytes: of the larger of operand and result.
    group: tuple of int, the devices that take part.
    torus: `Torus`.

  Returns:
    float.
  """
  if kind == "collective-permute":
    return num_bytes / torus.link_bytes_per_second
  n, spans = len(group), _spans(group, torus)
  links = {i: _links_of(positions, i, torus) for i, positions in spans.items()}
  trips = 2 if kind == "all-reduce" else 1
  # A group within one chip is counted at the speed of one link.
  seconds = trips * (n - 1) / n * num_bytes / (sum(links.values()) or 1)
  if kind == "all-to-all" and spans:
    longest = max(spans, key=lambda i: len(spans[i]))
    cut = links[longest] * n / len(spans[longest])
    seconds = max(seconds, n / 4 * num_bytes / cut)
  return seconds / torus.link_bytes_per_second


def _spans(group, torus):
  """Returns a group's positions in each dimension where it has several."""
  places = zip(*[torus.coords[device] for device in group], strict=True)
  positions = {i: sorted(set(column)) for i, column in enumerate(places)}
  return {i: found for i, found in positions.items() if len(found) > 1}


def _links_of(positions, i, torus):
  """Returns a chip's links in dimension `i`, shared by interleaved groups."""
  is_ring = torus.rings[i] and len(positions) > 2
  between = (positions[-1] - positions[0]) / (len(positions) - 1)
  return (2 if is_ring else 1) / between


@dataclasses.dataclass(frozen=True)
class Torus:
  """The chips of a slice and their links.

  Attributes:
    coords: position in the torus (tuple of int) of each device of the program.
    rings: for each dimension, whether it is a ring (wraps around).
    link_bytes_per_second: a device's share of one link, one way.
  """

  coords: tuple
  rings: tuple
  link_bytes_per_second: float
