"""Adds up what a TPU's compiler expects of a program: time and traffic.

The compiler writes `estimated_cycles` into every fusion that its cost model
covers. Summed over the schedule, loop bodies times their trip count, that is
the time the cores work. Collectives carry no estimate; `links.py` says what
they take. One that starts and is done later hides behind the work between; any
other hides nothing. The compiler runs some beside a fusion's own work: such a
pair is named `async-collective-start` and `-done` and is a fusion around the
collective. Or it hands them to a chip's SparseCores: `call-start` and
`call-done`. An all-reduce of which each device keeps a part is a fusion too,
and a reduce-scatter: it is named by what it calls, `all-reduce-scatter`.

Pallas kernels carry no estimate either. One whose author gave a cost
(`pl.CostEstimate`) counts at its roofline: the longer of its FLOPs at the
peak and its bytes at the memory's bandwidth. Where the instructions of a step
of its grid were counted (`bundles.py`) and take longer, those count. Both are
bounds, not estimates. Lookups and scatters of whole rows count by the row.
Everything else that works and has no estimate is counted by name in
`uncosted`. Copies between a chip's memories (`copy-start`, `slice-start`) run
beside the cores and are taken as hidden.
"""

import collections
import dataclasses
import re

from bert_jax.hlo import links, program

# Free: they name, unpack or wait for what is there.
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
# Work whatever the size; of anything else less than one vector register is
# left to the scalar core.
_WORKING_OPCODES = ("fusion", "custom-call", "sort", "rng-bit-generator")
_REGISTER_BYTES = 4096

# Instruction words of a row of BERT-base's embeddings, 768 entries: what libtpu
# 0.0.42.1 emits for v5e, 16 sequences of 128.
_WORDS_A_ROW = {"gather": 15, "scatter": 73}
_ROW_ENTRIES = 128

_ASYNC_START, _ASYNC_DONE = "async-collective-start", "async-collective-done"
_FUSED_REDUCE_SCATTER = "all-reduce-scatter"


def estimate(text, rates, torus, bundles=None):
  """Adds up a program's schedule.

  Args:
    text: str, an optimised and scheduled HLO module.
    rates: `Rates` of the device it was compiled for.
    torus: `links.Torus` of all devices.
    bundles: dict of kernel name to instruction words of a step of its grid, as
      `bundles.read` returns it; kernels that are not in it count at their
      roofline.

  Returns:
    `ScheduleCost`.
  """
  computations = program.parse(text)
  # Equal kernels are compiled once, and only the first of them is dumped.
  words = {
    op.kernel_body: bundles[op.name]
    for ops in computations.values()
    for op in ops
    if op.kernel_body and op.name in (bundles or {})
  }
  totals = _Totals(rates, torus, words, computations, {})
  return totals.schedule("ENTRY")


def _begin_of(op):
  """Returns the name of what `op` is the end of, or None."""
  if op.name.startswith(_ASYNC_DONE):
    return _ASYNC_START + op.name.removeprefix(_ASYNC_DONE)
  if op.opcode.endswith("-done") and op.operands:
    return op.operands[0]
  return None


def _works(op):
  """Tells whether an instruction without an estimate takes time."""
  if op.opcode == "custom-call":
    return not any(f'"{call}"' in op.rest for call in _FREE_CUSTOM_CALLS)
  if op.opcode in _FREE_OPCODES or op.opcode.endswith("-done"):
    return False
  small = program.shape_bytes(op.shape) < _REGISTER_BYTES
  return op.opcode in _WORKING_OPCODES or not small


def _model_op(op):
  """Returns the name of an operation in the model's code, without layer."""
  name = re.sub(r"layer_\d+", "layer", op.op_name)
  return re.sub(r"^jit\(train_step\)/", "", name) or op.opcode


@dataclasses.dataclass(frozen=True)
class Rates:
  """What a device can do.

  Attributes:
    clock_hz: cycles a second that the compiler counts.
    peak_flops: bfloat16 FLOP/s.
    hbm_bytes_per_second: of its memory.
    num_cores: that share the steps of a kernel's grid.
  """

  clock_hz: float
  peak_flops: float
  hbm_bytes_per_second: float
  num_cores: int = 1


@dataclasses.dataclass
class ScheduleCost:
  """What a schedule adds up to, on one device.

  Attributes:
    compute_seconds: of all estimates.
    kernel_seconds: of all kernels with a cost, at the higher of their bounds.
    roofline_seconds: of the same at their roofline.
    row_seconds: of lookups and scatters of rows.
    collective_seconds: of all collectives, hidden or not.
    exposed_seconds: of collectives, beyond the work they run beside.
    collective_bytes: by kind.
    collective_count: by kind.
    cycles_by_op: estimated cycles by the model's own name of the operation.
    uncosted: how many instructions that do work have no estimate, by kind.
  """

  compute_seconds: float = 0.0
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
    """Time of the cores."""
    return self.compute_seconds + self.kernel_seconds + self.row_seconds

  @property
  def seconds(self):
    """Estimated time of the program."""
    return self.work_seconds + self.exposed_seconds

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
  """Adds up computations, each once.

  Attributes:
    rates: `Rates`.
    torus: `links.Torus`.
    bundles: instruction words of a step of the grid, by kernel's code.
    computations: see `program.parse`.
    done: `ScheduleCost` by name of the computation.
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
      if begin := _begin_of(op):
        if begun := in_flight.pop(begin, None):
          hidden = cost.work_seconds - begun[0]
          cost.exposed_seconds += max(0.0, begun[1] - hidden)
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
    """Adds the computations that an instruction runs, if it does."""
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
      cost.compute_seconds += op.cycles / self.rates.clock_hz
      cost.cycles_by_op[_model_op(op)] += op.cycles
    elif op.kernel_cost:
      roofline = self._roofline(*op.kernel_cost)
      cost.roofline_seconds += roofline
      cost.kernel_seconds += max(roofline, self._bundle_seconds(op))
    elif num_words := self._words_of_rows(op):
      cost.row_seconds += num_words / self.rates.clock_hz
    elif _works(op):
      cost.uncosted[re.sub(r"[.\d]+$", "", op.name)] += 1

  def _roofline(self, num_flops, num_bytes):
    return max(
      num_flops / self.rates.peak_flops,
      num_bytes / self.rates.hbm_bytes_per_second,
    )

  def _bundle_seconds(self, op):
    """Returns the time of a kernel's instructions, 0 where none are known."""
    words = self.bundles.get(op.kernel_body, 0) * (op.kernel_steps or 0)
    return words / self.rates.num_cores / self.rates.clock_hz

  def _words_of_rows(self, op):
    """Returns the instruction words of a lookup or scatter of long rows."""
    held = self.computations.get(op.called("calls"), ())
    for inner in held if op.cycles is None else ():
      if inner.opcode in _WORDS_A_ROW:
        num_rows, num_entries = program.count_rows(inner, held)
        if num_entries >= _ROW_ENTRIES:
          return num_rows * _WORDS_A_ROW[inner.opcode]
    return 0

  def _collective(self, op):
    """Returns the collective that `op` is or, begun in another way, holds."""
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
      # Its type holds the operands beside the result.
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
