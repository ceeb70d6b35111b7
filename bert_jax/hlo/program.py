"""Parses the text of scheduled HLO.

`cost.py` and `memory.py` interpret what is parsed here. Text and not
HloModuleProto, since the classes that read that come only with TensorFlow,
whose import takes seconds and whose XLA is not libtpu's version.
"""

import dataclasses
import math
import re

import numpy as np

COLLECTIVES = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)

# The compiler writes this where its cost model has no estimate.
_NO_ESTIMATE = 2**63 - 1
_BYTES_OF = {"pred": 1, "token": 0, "c64": 8, "c128": 16}
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*\w*)\[([0-9,]*)\](\{[^}]*\})?")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# The metadata of a Pallas kernel spans several lines.
_BROKEN_LINE = re.compile(r'\n(?="|\}\},)')
_BODY = re.compile(r'"custom_call_config":\{"body":"([^"]*)"')
_STEPS = re.compile(r'kernel_metadata=\{"grid_steps":"(\d+)"')
_KERNEL = re.compile(
  r'"cost_estimate":\{"flops":"(\d+)".*?"bytes_accessed":"(\d+)"'
)


def parse(text):
  """Splits HLO text into computations.

  Args:
    text: str, an optimised and scheduled HLO module.

  Returns:
    dict of computation name to list of `Instruction` in schedule order; the
    key "ENTRY" holds the program itself.
  """
  computations, current = {}, None
  for line in _BROKEN_LINE.sub("", text).splitlines():
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


def shape_bytes(shape, memory_space=None):
  """Counts the bytes of a type such as "(f32[2,3]{1,0}, bf16[8])".

  Args:
    shape: str.
    memory_space: counts only arrays in this memory, 0 for HBM; by default all.

  Returns:
    int or float, bytes without padding.
  """
  total = 0
  for dtype, dims, layout in _ARRAY.findall(shape):
    space = re.search(r"S\((\d+)\)", layout)
    if memory_space in (None, int(space.group(1)) if space else 0):
      size = math.prod(int(d) for d in dims.split(",") if d)
      total += _dtype_bytes(dtype) * size
  return total


def first_group(attributes):
  """Reads the devices of the first replica group of a collective.

  Args:
    attributes: str, the instruction's text behind the operands.

  Returns:
    tuple of int, or None where no group is given.
  """
  listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
  if listed:
    return tuple(map(int, listed.group(1).split(",")))
  mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes)
  if mesh:
    axes = re.findall(r"'(\w+)'=(\d+)", mesh.group(1))
    joined = re.findall(r"'(\w+)'", mesh.group(2))
    devices = _iota([int(size) for _, size in axes])
    index = tuple(slice(None) if a in joined else 0 for a, _ in axes)
    return tuple(devices[index].ravel().tolist())
  iota = re.search(
    r"replica_groups=\[\d+,(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
  )
  if not iota:
    return None
  size, shape, order = iota.groups()
  devices = _iota([int(n) for n in shape.split(",")])
  if order:
    devices = devices.transpose([int(i) for i in order.split(",")])
  return tuple(devices.ravel()[: int(size)].tolist())


def _iota(shape):
  return np.arange(math.prod(shape)).reshape(shape)


def tuple_elements(shape):
  """Splits the type of a tuple into the types of its elements."""
  if not shape.startswith("("):
    return [shape]
  parts, depth, start = [], 0, 1
  for i, char in enumerate(shape):
    depth += (char in "([{") - (char in ")]}")
    if (char == "," and depth == 1) or depth == 0:
      parts.append(shape[start:i])
      start = i + 1
  return parts


def count_rows(op, computation):
  """Counts the rows that a gather looks up, or that a scatter adds.

  Args:
    op: `Instruction`, a "gather" or "scatter".
    computation: list of `Instruction` that `op` is one of.

  Returns:
    (number of rows, entries of each row).
  """
  if op.opcode == "gather":
    sizes = re.search(r"slice_sizes=\{([\d,]*)\}", op.rest).group(1)
    num_entries = math.prod(map(int, filter(None, sizes.split(","))))
    return math.prod(_dims(op.shape)) // num_entries, num_entries
  updates = {other.name: other for other in computation}[op.operands[2]]
  window = re.search(r"update_window_dims=\{([\d,]*)\}", op.rest).group(1)
  dims = _dims(updates.shape)
  num_entries = math.prod(dims[int(i)] for i in filter(None, window.split(",")))
  return math.prod(dims) // num_entries, num_entries


def _dims(shape):
  """Returns the dimensions of an array's type."""
  dims = _ARRAY.search(shape).group(2)
  return [int(d) for d in dims.split(",") if d]


def trip_count(op, computations):
  """Reads a loop's trip count, or the constant its condition compares to.

  Args:
    op: `Instruction`, a "while".
    computations: see `parse`.

  Returns:
    int, or None where neither is given.
  """
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"', op.rest)
  if known:
    return int(known.group(1))
  bounds = [
    int(match.group(1))
    for line in computations[op.called("condition")]
    if line.opcode == "constant" and (match := re.match(r"(\d+)\)", line.rest))
  ]
  return max(bounds, default=None)


def _parse_instruction(name, rest):
  shape, rest = _split_type(rest)
  opcode, _, rest = rest.partition("(")
  cycles = _CYCLES.search(rest)
  cycles = int(cycles.group(1)) if cycles else None
  return Instruction(
    name=name,
    opcode=opcode.strip(),
    shape=shape,
    rest=rest,
    cycles=None if cycles == _NO_ESTIMATE else cycles,
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


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction of scheduled HLO.

  Attributes:
    name: without the %.
    opcode: such as "fusion" or "all-gather-start".
    shape: text of its type.
    rest: text of operands and attributes.
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
    """List of its operands' names."""
    depth = 1
    for i, char in enumerate(self.rest):
      depth += (char == "(") - (char == ")")
      if depth == 0:
        return re.findall(r"%([\w.\-]+)", self.rest[:i])
    return []

  @property
  def op_name(self):
    """Path of the operation in the model's code, or ""."""
    match = re.search(r'op_name="([^"]*)"', self.rest)
    return match.group(1) if match else ""

  @property
  def collective(self):
    """Kind of collective, one of `COLLECTIVES`, or None."""
    kind = self.opcode.removesuffix("-start")
    return kind if kind in COLLECTIVES else None

  @property
  def kernel_body(self):
    """Code of a Pallas kernel, the same for equal kernels, or None."""
    match = self.opcode == "custom-call" and _BODY.search(self.rest)
    return match.group(1) if match else None

  @property
  def kernel_steps(self):
    """Grid steps of a Pallas kernel, if its metadata has them, or None."""
    match = _STEPS.search(self.rest)
    return int(match.group(1)) if match else None

  @property
  def kernel_cost(self):
    """(FLOPs, bytes) of a Pallas kernel's `pl.CostEstimate`, or None."""
    match = self.opcode == "custom-call" and _KERNEL.search(self.rest)
    return tuple(map(int, match.groups())) if match else None
