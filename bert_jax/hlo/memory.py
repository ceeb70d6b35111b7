"""Splits the memory of a compiled step into activations and temporaries.

The compiler reports one number for everything that a step allocates. Its HLO
schedule says more: a value that an operation of the forward pass wrote and one
of the backward pass reads is an activation. This module adds up activations at
the point of the schedule where they take the most; the rest of the compiler's
number are temporaries. Sizes are those of the types, without the padding of
tiles.
"""

import collections

from bert_jax.hlo import program

# Their result is one of their operands under another name.
_ALIASES = ("bitcast", "get-tuple-element", "tuple", "opt-barrier")
# Their result is a copy of an operand, or of a piece of it.
_COPIES = ("copy", "copy-start", "slice-start")


def count_step_bytes(compiled, platform):
  """Counts the peak bytes that a step allocates beside its arguments.

  From `peak_memory_in_bytes` on TPUs, where `temp_size_in_bytes` was 16.57 GiB
  for a step that the compiler accepted for 15.75 GiB. On other platforms from
  `temp_size_in_bytes`, since their peak leaves temporaries out.

  Args:
    compiled: `jax.stages.Compiled`.
    platform: of its devices, such as "tpu".

  Returns:
    int, bytes a device.
  """
  analysis = compiled.memory_analysis()
  if platform == "tpu":
    return analysis.peak_memory_in_bytes - analysis.argument_size_in_bytes
  return analysis.temp_size_in_bytes


def count_activations(text):
  """Counts the peak bytes that the forward pass stores for the backward pass.

  Args:
    text: str, an optimised and scheduled HLO module.

  Returns:
    int, bytes a device; with gradient accumulation, of one micro-batch.
  """
  computations = program.parse(text)
  scheduled = {"ENTRY"} | {
    op.called("body")
    for ops in computations.values()
    for op in ops
    if op.opcode == "while"
  }
  return max(int(_peak_activations(computations[name])) for name in scheduled)


def _peak_activations(ops):
  """Returns the most bytes of activations that are alive at one point."""
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
  peak = alive = 0
  for i in sorted(changes):
    alive += changes[i]
    peak = max(peak, alive)
  return peak


def _is_alias(op):
  return (
    op.opcode in _ALIASES
    or op.opcode.endswith("-done")
    or '"ConcatBitcast"' in op.rest
  )


def _main_memory_bytes(op):
  shape = op.shape
  if op.opcode.endswith("-start"):
    # The type lists operand and result; that of a copy lists the result first.
    elements = program.tuple_elements(shape)
    shape = elements[0 if op.opcode == "copy-start" else 1]
  return program.shape_bytes(shape, memory_space=0)


class _Value:
  """A value of the schedule, and whether the backward pass reads it."""

  def __init__(self, begin, num_bytes, forward, origins):
    self.begin = self.end = begin
    self.num_bytes = num_bytes
    self.forward = forward
    self.origins = origins
    self.for_backward = False

  def read(self, i, backward, values):
    """Records a reader at place `i` of the schedule."""
    self.end = i
    if backward:
      self.mark_for_backward(values)

  def mark_for_backward(self, values):
    """Records that the backward pass reads this value, or a copy of it."""
    if not self.for_backward:
      self.for_backward = True
      for origin in self.origins:
        values[origin].mark_for_backward(values)
