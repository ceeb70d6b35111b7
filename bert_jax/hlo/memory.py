"""Finds in a compiled program what a step makes on its way, and what it keeps.

The compiler tells one number for everything that a step makes. Its schedule
tells more: what an operation of the forward pass wrote and one of the backward
pass reads is an activation. They are added up where most of them lie in memory
together; the rest of the compiler's number are temporaries, of one operation or
another. Sizes are those of the types, without the padding of tiles, so
activations may be somewhat more than they are called here.
"""

import collections

from bert_jax.hlo import program

# Hand on operands under another name.
_ALIASES = ("bitcast", "get-tuple-element", "tuple", "opt-barrier")
# The same value, or a piece of it, in another place.
_COPIES = ("copy", "copy-start", "slice-start")


def count_made_bytes(compiled, platform):
  """Counts the bytes that a step makes on its way, where they are the most.

  A TPU's compiler says so at `peak_memory_in_bytes`; for a step that it lets
  pass at 15.75 GiB, `temp_size_in_bytes` is 16.57. Others leave what is
  temporary out of their peak.

  Args:
    compiled: `jax.stages.Compiled`.
    platform: of its devices, such as "tpu".

  Returns:
    int, bytes a device beside the arguments.
  """
  analysis = compiled.memory_analysis()
  if platform == "tpu":
    return analysis.peak_memory_in_bytes - analysis.argument_size_in_bytes
  return analysis.temp_size_in_bytes


def count_activations(text):
  """Counts the bytes that wait in memory for the backward pass.

  Args:
    text: str, an optimised and scheduled HLO module.

  Returns:
    int, bytes a device; with micro-batches, those of one.
  """
  computations = program.parse(text)
  scheduled = {"ENTRY"} | {
    op.called("body")
    for ops in computations.values()
    for op in ops
    if op.opcode == "while"
  }
  return max(int(_most_waiting(computations[name])) for name in scheduled)


def _most_waiting(ops):
  """Returns the bytes of activations where most wait together."""
  values, held_by = {}, {}
  for i, op in enumerate(ops):
    operands = [v for o in op.operands for v in held_by.get(o, ())]
    for value in operands:
      values[value].read(i, "transpose(" in op.op_name, values)
    if _is_alias(op):
      held_by[op.name] = operands
    elif op.opcode != "parameter":
      held_by[op.name] = [op.name]
      origins = operands if op.opcode in _COPIES else []
      forward = "jvp(" in op.op_name and "transpose(" not in op.op_name
      forward |= any(values[origin].forward for origin in origins)
      values[op.name] = _Value(i, _main_memory_bytes(op), forward, origins)
  changes = collections.Counter()
  for value in values.values():
    if value.forward and value.for_backward:
      changes[value.begin] += value.num_bytes
      changes[value.end] -= value.num_bytes
  most = waiting = 0
  for i in sorted(changes):
    waiting += changes[i]
    most = max(most, waiting)
  return most


def _is_alias(op):
  return (
    op.opcode in _ALIASES
    or op.opcode.endswith("-done")
    or '"ConcatBitcast"' in op.rest
  )


def _main_memory_bytes(op):
  shape = op.shape
  if op.opcode.endswith("-start"):
    # Operand and result; a copy names its result first.
    elements = program.tuple_elements(shape)
    shape = elements[0 if op.opcode == "copy-start" else 1]
  return program.shape_bytes(shape, memory_space=0)


class _Value:
  """What an instruction wrote: where in the schedule, and for whom."""

  def __init__(self, begin, num_bytes, forward, origins):
    self.begin = self.end = begin
    self.num_bytes = num_bytes
    self.forward = forward
    self.origins = origins
    self.for_backward = False

  def read(self, i, backward, values):
    """Notes a reader; that of a copy has an interest in its origins too."""
    self.end = i
    if backward:
      self.mark_for_backward(values)

  def mark_for_backward(self, values):
    """Notes that the backward pass reads this, or a copy of it."""
    if not self.for_backward:
      self.for_backward = True
      for origin in self.origins:
        values[origin].mark_for_backward(values)
