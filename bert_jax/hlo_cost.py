"""Reads what a TPU's compiler expects of a program from its scheduled HLO.

The compiler writes `estimated_cycles` into every fusion that its cost model
covers. Summed over the schedule, loop bodies times their trip count, that is
the time the cores work. Collectives carry no estimate; here they take

  all-reduce           2 (n-1)/n bytes    over all links of a chip
  all-gather,
  reduce-scatter,
  all-to-all             (n-1)/n bytes    over all links of a chip
  collective-permute             bytes    over one link

for n chips a group, where bytes are those of the larger side. One that starts
and is done later hides behind the work between; any other hides nothing. The
compiler runs some beside a fusion's own work: such a pair is named
`async-collective-start` and `-done` and is a fusion around the collective.
"""

import collections
import dataclasses
import math
import re

COLLECTIVES = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
# Does work, and yet may stand without an estimate.
WORKING_OPCODES = ("fusion", "custom-call", "sort", "rng-bit-generator")
# Custom calls that only name memory.
_FREE_CUSTOM_CALLS = ("AllocateBuffer", "ConcatBitcast")

_ASYNC_START, _ASYNC_DONE = "async-collective-start", "async-collective-done"
_BYTES_OF = {"pred": 1, "token": 0, "c64": 8, "c128": 16}
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*\w*)\[([0-9,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


def parse(text):
  """Splits HLO text into computations.

  Args:
    text: str, an optimised and scheduled HLO module.

  Returns:
    dict of computation name to list of `Instruction` in schedule order; the
    key "ENTRY" holds the program itself.
  """
  computations, current = {}, None
  for line in text.splitlines():
    if not line.startswith(" "):
      match = _COMPUTATION.match(line)
      if match:
        name = "ENTRY" if match.group(1) else match.group(2)
        current = computations.setdefault(name, [])
      continue
    match = _INSTRUCTION.match(line)
    if match and current is not None:
      current.append(_parse_instruction(*match.groups()))
  return computations


def estimate(text, clock_hz, link_bytes_per_second, num_links):
  """Adds up a program's schedule.

  Args:
    text: str, an optimised and scheduled HLO module.
    clock_hz: cycles a second of a core.
    link_bytes_per_second: of one link, one way.
    num_links: links of a chip.

  Returns:
    `ScheduleCost`.
  """
  computations = parse(text)
  totals = _Totals(clock_hz, link_bytes_per_second, num_links, computations, {})
  return totals.schedule("ENTRY")


def shape_bytes(shape):
  """Counts the bytes of a type such as "(f32[2,3]{1,0}, bf16[8])"."""
  total = 0
  for dtype, dims in _ARRAY.findall(shape):
    total += _dtype_bytes(dtype) * math.prod(
      int(d) for d in dims.split(",") if d
    )
  return total


def group_size(attributes):
  """Reads how many devices a collective spans; None where it says nothing."""
  mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes)
  if mesh:
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh.group(1)))
    return math.prod(
      int(sizes[a]) for a in re.findall(r"'(\w+)'", mesh.group(2))
    )
  iota = re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes)
  if iota:
    return int(iota.group(1))
  listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
  return len(listed.group(1).split(",")) if listed else None


def _parse_instruction(name, rest):
  shape, rest = _split_type(rest)
  opcode, _, rest = rest.partition("(")
  cycles = _CYCLES.search(rest)
  return Instruction(
    name=name,
    opcode=opcode.strip(),
    shape=shape,
    rest=rest,
    cycles=int(cycles.group(1)) if cycles else None,
  )


def _split_type(text):
  """Splits "TYPE opcode(...)"; a tuple's type holds spaces."""
  if not text.startswith("("):
    shape, _, rest = text.partition(" ")
    return shape, rest
  depth = 0
  for i, char in enumerate(text):
    depth += (char == "(") - (char == ")")
    if depth == 0:
      return text[: i + 1], text[i + 1 :].lstrip()
  return text, ""


def _dtype_bytes(dtype):
  if dtype in _BYTES_OF:
    return _BYTES_OF[dtype]
  bits = re.search(r"\d+", dtype)
  return int(bits.group()) / 8 if bits else 0


def _collective_seconds(opcode, num_bytes, n, link, num_links):
  if opcode == "collective-permute":
    return num_bytes / link
  trips = 2 if opcode == "all-reduce" else 1
  return trips * (n - 1) / n * num_bytes / (link * num_links)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a schedule.

  Attributes:
    name: without the %.
    opcode: such as "fusion" or "all-gather-start".
    shape: its type, as written.
    rest: operands and attributes, as written.
    cycles: the compiler's estimate, or None.
  """

  name: str
  opcode: str
  shape: str
  rest: str
  cycles: int | None

  def called(self, role):
    """Returns the computation it calls as `role`, such as "body", or None."""
    match = re.search(rf"\b{role}=%?([\w.\-]+)", self.rest)
    return match.group(1) if match else None

  @property
  def operands(self):
    """Names of its operands."""
    depth = 1
    for i, char in enumerate(self.rest):
      depth += (char == "(") - (char == ")")
      if depth == 0:
        return re.findall(r"%([\w.\-]+)", self.rest[:i])
    return []


@dataclasses.dataclass
class ScheduleCost:
  """What a schedule adds up to, on one chip.

  Attributes:
    compute_seconds: of all estimates.
    collective_seconds: of all collectives, hidden or not.
    exposed_seconds: of collectives, beyond the work they run beside.
    collective_bytes: by kind.
    collective_count: by kind.
    cycles_by_op: estimated cycles by the model's own name of the operation.
    uncosted: how many instructions that do work have no estimate, by kind.
  """

  compute_seconds: float = 0.0
  collective_seconds: float = 0.0
  exposed_seconds: float = 0.0
  collective_bytes: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  collective_count: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  cycles_by_op: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  uncosted: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )

  @property
  def seconds(self):
    """Estimated time of the program."""
    return self.compute_seconds + self.exposed_seconds

  def add(self, other, times):
    """Adds another schedule, run `times` times."""
    for field in dataclasses.fields(self):
      mine, theirs = getattr(self, field.name), getattr(other, field.name)
      if isinstance(mine, collections.Counter):
        mine.update({key: times * value for key, value in theirs.items()})
      else:
        setattr(self, field.name, mine + times * theirs)


@dataclasses.dataclass
class _Totals:
  """Adds up computations, each once; see `estimate` for the attributes."""

  clock_hz: float
  link_bytes_per_second: float
  num_links: int
  computations: dict
  done: dict

  def schedule(self, name):
    """Returns the `ScheduleCost` of a computation."""
    if name in self.done:
      return self.done[name]
    cost, in_flight = ScheduleCost(), {}
    for op in self.computations[name]:
      if op.opcode == "while":
        body = self.schedule(op.called("body"))
        cost.add(body, self._trip_count(op))
      elif op.opcode in ("call", "conditional"):
        for role in ("to_apply", "true_computation", "false_computation"):
          if op.called(role):
            cost.add(self.schedule(op.called(role)), 1)
      elif begin := _begin_of(op):
        if begun := in_flight.pop(begin, None):
          hidden = cost.compute_seconds - begun[0]
          cost.exposed_seconds += max(0.0, begun[1] - hidden)
      elif collective := self._collective(op):
        seconds = self._count_collective(collective, cost)
        if op.opcode.endswith("-start") or _ASYNC_START in op.name:
          in_flight[op.name] = (cost.compute_seconds, seconds)
        else:
          cost.exposed_seconds += seconds
      elif op.cycles is not None:
        cost.compute_seconds += op.cycles / self.clock_hz
        cost.cycles_by_op[_op_name(op)] += op.cycles
      elif op.opcode in WORKING_OPCODES and not any(
        f'"{call}"' in op.rest for call in _FREE_CUSTOM_CALLS
      ):
        cost.uncosted[re.sub(r"[.\d]+$", "", op.name)] += 1
    self.done[name] = cost
    return cost

  def _collective(self, op):
    """Returns the collective that `op` is or, begun as a fusion, holds."""
    if _kind(op):
      return op
    if op.name.startswith(_ASYNC_START):
      inner = self.computations[op.called("calls")]
      return next(filter(_kind, inner), None)
    return None

  def _count_collective(self, op, cost):
    kind = _kind(op)
    num_bytes = shape_bytes(op.shape)
    if op.opcode.endswith("-start") and kind != "all-reduce":
      # Its type holds the operands beside the result.
      num_bytes = max(shape_bytes(part) for part in _elements(op.shape))
    n = group_size(op.rest) or 2
    if kind == "reduce-scatter":
      num_bytes *= n
    seconds = _collective_seconds(
      kind, num_bytes, n, self.link_bytes_per_second, self.num_links
    )
    cost.collective_seconds += seconds
    cost.collective_bytes[kind] += num_bytes
    cost.collective_count[kind] += 1
    return seconds

  def _trip_count(self, op):
    """Reads a loop's trip count, or the constant its condition compares to."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', op.rest)
    if known:
      return int(known.group(1))
    bounds = [
      int(match.group(1))
      for line in self.computations[op.called("condition")]
      if line.opcode == "constant"
      and (match := re.match(r"(\d+)\)", line.rest))
    ]
    return max(bounds, default=1)


def _kind(op):
  """Returns the kind of collective that an instruction is, or None."""
  kind = op.opcode.removesuffix("-start")
  return kind if kind in COLLECTIVES else None


def _begin_of(op):
  """Returns the name of what `op` is the end of, or None."""
  if op.name.startswith(_ASYNC_DONE):
    return _ASYNC_START + op.name.removeprefix(_ASYNC_DONE)
  if op.opcode.endswith("-done") and op.operands:
    return op.operands[0]
  return None


def _elements(shape):
  """Splits the type of a tuple at its own commas."""
  if not shape.startswith("("):
    return [shape]
  parts, depth, start = [], 0, 1
  for i, char in enumerate(shape):
    depth += (char in "([{") - (char in ")]}")
    if (char == "," and depth == 1) or depth == 0:
      parts.append(shape[start:i])
      start = i + 1
  return parts


def _op_name(op):
  """Returns the name of an operation in the model's code, without layer."""
  match = re.search(r'op_name="([^"]*)"', op.rest)
  if not match:
    return op.opcode
  name = re.sub(r"layer_\d+", "layer", match.group(1))
  return re.sub(r"^jit\(train_step\)/", "", name)
