"""Estimates the time of a compiled TPU program from its HLO schedule.

* Fusions: the compiler writes `estimated_cycles` into every one that its cost
  model covers. They are summed over the schedule, loop bodies times their trip
  count.
* Collectives: `links.py` models their time. An asynchronous collective is
  exposed only for what it takes beyond the work between its start and its end,
  a synchronous one always. Three forms are asynchronous: `*-start` and `*-done`
  instructions; fusions named `async-collective-start` and `-done`; and
  `call-start` and `call-done`, which run on a chip's SparseCores. A fusion that
  calls `all-reduce-scatter` is a reduce-scatter.
* Pallas kernels: the longer of two lower bounds. One is the roofline of the
  author's `pl.CostEstimate`: FLOPs at the chip's peak or bytes at the memory's
  bandwidth. The other is VLIW bundles times grid steps (`bundles.py`), where
  the bundles were counted.
* Gathers and scatters of embedding rows: bundles per row.
* Copies between HBM and VMEM (`copy-start`, `slice-start`) overlap with other
  work and count as hidden.
* Everything else that takes time is counted by name in `uncosted`.
"""

import collections
import dataclasses
import re

from bert_jax.hlo import links, program

# Take no time: they rename, unpack or wait for existing values.
_FREE_OPCODES = (
  "parameter",
  "constant",
  "tuple",
  "get-tuple-element",
  "bitcast",
  "reshape",
  "after-all",
  "add-dependency",
  "opt-barrier",
  "partition-id",
  "replica-id",
  "copy-start",
  "copy-done",
  "slice-start",
  "slice-done",
)
_FREE_CUSTOM_CALLS = (
  "AllocateBuffer",
  "ConcatBitcast",
  "PrepareAsyncCallStart",
  "PrepareAsyncCallDone",
)
# Take time whatever their size. Other instructions on less than a vector
# register's bytes run on the scalar core, and count as free.
_WORKING_OPCODES = (
  "fusion",
  "custom-call",
  "gather",
  "scatter",
  "sort",
  "rng-bit-generator",
)
# Both are matrix multiplications: TPU compilers turn dots into convolutions.
_MATMUL_OPCODES = ("convolution", "dot")
_REGISTER_BYTES = 4096

# VLIW bundles per row of BERT-base's word embeddings, 768 entries, as libtpu
# 0.0.42.1 emits them for v5e and 16 sequences of 128.
_BUNDLES_A_ROW = {"gather": 15, "scatter": 73}
# Shorter rows are not priced.
_MIN_ROW_ENTRIES = 128

_ASYNC_START, _ASYNC_DONE = "async-collective-start", "async-collective-done"
_FUSED_REDUCE_SCATTER = "all-reduce-scatter"


def estimate(text, rates, torus, bundles=None):
  """Estimates the time of a program.

  Args:
    text: str, an optimised and scheduled HLO module.
    rates: `Rates` of the device it was compiled for.
    torus: `links.Torus` of all devices.
    bundles: dict of kernel name to bundles of a grid step, as `bundles.read`
      returns it; other kernels count at their roofline.

  Returns:
    `ScheduleCost`.
  """
  computations = program.parse(text)
  # The compiler writes the bundles of equal kernels once, under the first name.
  bundles_by_body = {
    op.kernel_body: bundles[op.name]
    for ops in computations.values()
    for op in ops
    if op.kernel_body and op.name in (bundles or {})
  }
  totals = _Totals(rates, torus, bundles_by_body, computations, {})
  return totals.schedule("ENTRY")


def _start_of(op):
  """Returns the name of the start instruction that `op` completes, or None."""
  if op.name.startswith(_ASYNC_DONE):
    return _ASYNC_START + op.name.removeprefix(_ASYNC_DONE)
  if op.opcode.endswith("-done") and op.operands:
    return op.operands[0]
  return None


def _works(op):
  """Tells whether an instruction without an estimate takes noticeable time."""
  if op.opcode == "custom-call":
    return not any(f'"{call}"' in op.rest for call in _FREE_CUSTOM_CALLS)
  if op.opcode in _FREE_OPCODES or op.opcode.endswith("-done"):
    return False
  small = program.shape_bytes(op.shape) < _REGISTER_BYTES
  return op.opcode in _WORKING_OPCODES or not small


def _model_op(op):
  """Returns an instruction's path in the model, without the layer's number."""
  name = re.sub(r"layer_\d+", "layer", op.op_name)
  return re.sub(r"^jit\(train_step\)/", "", name) or op.opcode


@dataclasses.dataclass(frozen=True)
class Rates:
  """Rates of a device.

  Attributes:
    clock_hz: of the cycles that the compiler estimates.
    peak_flops: bfloat16 FLOP/s.
    hbm_bytes_per_second: bandwidth of HBM.
    num_cores: cores that share the steps of a kernel's grid.
  """

  clock_hz: float
  peak_flops: float
  hbm_bytes_per_second: float
  num_cores: int = 1


@dataclasses.dataclass
class ScheduleCost:
  """Estimated time of a schedule on one device.

  Attributes:
    compute_seconds: sum of the compiler's estimates.
    matmul_seconds: the part of `compute_seconds` spent in fusions that hold a
      matrix multiplication.
    kernel_seconds: Pallas kernels, each at the longer of its lower bounds.
    roofline_seconds: the same kernels at their roofline.
    row_seconds: gathers and scatters of embedding rows.
    collective_seconds: all collectives, exposed or not.
    exposed_seconds: collectives, the part that no other work hides.
    collective_bytes: bytes by kind of collective.
    collective_count: number by kind of collective.
    cycles_by_op: the compiler's cycles by an instruction's path in the model.
    uncosted: number of instructions that take time without an estimate, by
      name.
  """

  compute_seconds: float = 0.0
  matmul_seconds: float = 0.0
  kernel_seconds: float = 0.0
  roofline_seconds: float = 0.0
  row_seconds: float = 0.0
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
  def work_seconds(self):
    """Time in which the cores are busy."""
    return self.compute_seconds + self.kernel_seconds + self.row_seconds

  @property
  def seconds(self):
    """Estimated time of the program."""
    return self.work_seconds + self.exposed_seconds

  def add(self, other, times):
    """Adds another `ScheduleCost`, `times` times."""
    for field in dataclasses.fields(self):
      mine, theirs = getattr(self, field.name), getattr(other, field.name)
      if isinstance(mine, collections.Counter):
        mine.update({key: times * value for key, value in theirs.items()})
      else:
        setattr(self, field.name, mine + times * theirs)


@dataclasses.dataclass
class _Totals:
  """Estimates the computations of a program, each once.

  Attributes:
    rates: `Rates`.
    torus: `links.Torus`.
    bundles: dict of a kernel's code to bundles of a grid step.
    computations: see `program.parse`.
    done: dict of computation name to `ScheduleCost`.
  """

  rates: Rates
  torus: links.Torus
  bundles: dict
  computations: dict
  done: dict

  def schedule(self, name):
    """Returns the `ScheduleCost` of a computation."""
    if name in self.done:
      return self.done[name]
    cost, in_flight = ScheduleCost(), {}
    for op in self.computations[name]:
      if start := _start_of(op):
        if start in in_flight:
          work_seconds_before, seconds = in_flight.pop(start)
          hidden = cost.work_seconds - work_seconds_before
          cost.exposed_seconds += max(0.0, seconds - hidden)
      elif collective := self._collective(op):
        seconds = self._count_collective(collective, cost)
        if op.opcode.endswith("-start") or _ASYNC_START in op.name:
          in_flight[op.name] = (cost.work_seconds, seconds)
        else:
          cost.exposed_seconds += seconds
      elif not self._add_called(op, cost):
        self._add_work(op, cost)
    self.done[name] = cost
    return cost

  def _add_called(self, op, cost):
    """Adds the computations that a loop or call runs; False for others."""
    if op.opcode == "while":
      times = program.trip_count(op, self.computations)
      if times is None:
        cost.uncosted["loop of unknown length, counted once"] += 1
      cost.add(self.schedule(op.called("body")), times or 1)
      return True
    if op.opcode not in ("call", "conditional", "call-start", "async-start"):
      return False
    for role in ("to_apply", "calls", "true_computation", "false_computation"):
      if op.called(role):
        cost.add(self.schedule(op.called(role)), 1)
    return True

  def _add_work(self, op, cost):
    if op.cycles is not None:
      seconds = op.cycles / self.rates.clock_hz
      cost.compute_seconds += seconds
      cost.matmul_seconds += seconds if self._multiplies(op) else 0.0
      cost.cycles_by_op[_model_op(op)] += op.cycles
    elif op.kernel_cost:
      roofline = self._roofline(*op.kernel_cost)
      cost.roofline_seconds += roofline
      cost.kernel_seconds += max(roofline, self._bundle_seconds(op))
    elif num_bundles := self._row_bundles(op):
      cost.row_seconds += num_bundles / self.rates.clock_hz
    elif _works(op):
      cost.uncosted[re.sub(r"[.\d]+$", "", op.name)] += 1

  def _multiplies(self, op):
    """Tells whether an instruction is or holds a matrix multiplication."""
    if op.opcode in _MATMUL_OPCODES:
      return True
    held = self.computations.get(op.called("calls"), ())
    return any(map(self._multiplies, held))

  def _roofline(self, num_flops, num_bytes):
    return max(
      num_flops / self.rates.peak_flops,
      num_bytes / self.rates.hbm_bytes_per_second,
    )

  def _bundle_seconds(self, op):
    """Returns a kernel's time by its bundles, 0 where they were not counted."""
    bundles = self.bundles.get(op.kernel_body, 0) * (op.kernel_steps or 0)
    return bundles / self.rates.num_cores / self.rates.clock_hz

  def _row_bundles(self, op):
    """Returns the bundles of a gather or scatter of long rows, otherwise 0."""
    held = self.computations.get(op.called("calls"), ())
    for inner in held if op.cycles is None else ():
      if inner.opcode in _BUNDLES_A_ROW:
        num_rows, num_entries = program.count_rows(inner, held)
        if num_entries >= _MIN_ROW_ENTRIES:
          return num_rows * _BUNDLES_A_ROW[inner.opcode]
    return 0

  def _collective(self, op):
    """Returns the collective that `op` is or starts, or None."""
    if op.collective:
      return op
    if op.name.startswith(_ASYNC_START) or op.opcode == "async-start":
      return self._held_by(op.called("calls"))
    if op.opcode == "call-start":
      return self._held_by(op.called("to_apply"))
    called = op.opcode == "fusion" and op.called("calls")
    if called and called.startswith(_FUSED_REDUCE_SCATTER):
      held = self._held_by(called)
      return dataclasses.replace(held, opcode="reduce-scatter", shape=op.shape)
    return None

  def _held_by(self, name):
    """Returns the first collective of a computation, or None."""
    ops = self.computations.get(name, ())
    return next((op for op in ops if op.collective), None)

  def _count_collective(self, op, cost):
    kind = op.collective
    num_bytes = program.shape_bytes(op.shape)
    if op.opcode.endswith("-start") and kind != "all-reduce":
      # The type of a start lists operands and result.
      num_bytes = max(
        map(program.shape_bytes, program.tuple_elements(op.shape))
      )
    group = program.first_group(op.rest) or (0, 1)
    if kind == "reduce-scatter":
      num_bytes *= len(group)
    seconds = links.collective_seconds(kind, num_bytes, group, self.torus)
    cost.collective_seconds += seconds
    cost.collective_bytes[kind] += num_bytes
    cost.collective_count[kind] += 1
    return seconds
