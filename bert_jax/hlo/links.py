"""How long a collective keeps the links of a torus of chips busy.

Bytes are those of the larger side, n the devices of a group:

  all-reduce           2 (n-1)/n bytes    over the group's links
  all-gather,
  reduce-scatter         (n-1)/n bytes    over the group's links
  all-to-all             (n-1)/n bytes    the same, or a quarter of n times the
                                          bytes over the links of a cut through
                                          the middle, whichever takes longer
  collective-permute             bytes    over one link

A group's links are those of the dimensions that it spans: two of a chip in a
ring, one where it ends in a line or joins two neighbours. Groups that lie
between each other's chips in a dimension share its links.
"""

import dataclasses


def collective_seconds(kind, num_bytes, group, torus):
  """Returns the time that the links take.

  Args:
    kind: one of `program.COLLECTIVES`.
    num_bytes: of the larger side.
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
  # Devices of one chip speak at no less than the speed of a link.
  seconds = trips * (n - 1) / n * num_bytes / (sum(links.values()) or 1)
  if kind == "all-to-all" and spans:
    longest = max(spans, key=lambda i: len(spans[i]))
    cut = links[longest] * n / len(spans[longest])
    seconds = max(seconds, n / 4 * num_bytes / cut)
  return seconds / torus.link_bytes_per_second


def _spans(group, torus):
  """Returns the positions of a group in each dimension that has several."""
  places = zip(*[torus.coords[device] for device in group], strict=True)
  positions = {i: sorted(set(column)) for i, column in enumerate(places)}
  return {i: found for i, found in positions.items() if len(found) > 1}


def _links_of(positions, i, torus):
  """Returns the links of a chip in dimension `i`, less what others use."""
  is_ring = torus.rings[i] and len(positions) > 2
  between = (positions[-1] - positions[0]) / (len(positions) - 1)
  return (2 if is_ring else 1) / between


@dataclasses.dataclass(frozen=True)
class Torus:
  """The chips of a slice and their links.

  Attributes:
    coords: a tuple of int for each device of the program, in its order.
    rings: for each dimension, whether its ends are joined; in the best case,
      that of chips in the middle, it is true of all.
    link_bytes_per_second: of one link, one way; a device's share of it.
  """

  coords: tuple
  rings: tuple
  link_bytes_per_second: float
