"""Compiles the step of a phase for a slice and estimates its time and memory.

How far to trust the time: see `run_plan.py`.
"""

import collections
import os
import re
import tempfile

import jax

from bert_jax.errors import UserError
from bert_jax.hlo import bundles as bundles_lib
from bert_jax.hlo import cost as cost_lib
from bert_jax.hlo import memory as memory_lib
from bert_jax.planning import slices
from bert_jax.pretraining import objective
from bert_jax.pretraining import run as run_lib
from bert_jax.sharding import compiler_options, partitioning
from bert_jax.storage import paths
from bert_jax.training import flops

# A step's range, relative to its estimate; `run_plan.py` has the reasons.
RANGE = (0.8, 1.4)

# Parts of the model by an instruction's path in it; the first match counts.
_WORK_PARTS = (
  ("attention", r"/attention/self/"),
  ("dense layers", r"/layer/|/encoder/"),
  ("embeddings", r"/embeddings/"),
  ("heads", r"/cls/|/pooler/|loss"),
)

_OUT_OF_MEMORY = re.compile(
  r"HLO temporaries \((?P<temporaries>[\d.]+\w)\) exceeds"
  r"|Used (?P<all>[\d.]+\w) of [\d.]+\w hbm"
)


def plan_phase(config, planned, name, hlo_dir=None):
  """Plans one phase of a run.

  Args:
    config: the run's settings, validated.
    planned: `slices.Slice`.
    name: "phase1" or "phase2".
    hlo_dir: folder for the compiled program `<name>.txt`, or None.

  Returns:
    dict of what `plan --json` prints for a phase, in seconds, FLOPs, and bytes
    of one device. Where the step does not fit, `needed_bytes` instead of times.

  Raises:
    UserError: the mesh or batch does not fit the slice, or a kernel VMEM.
  """
  jax.config.update("jax_platforms", "cpu")
  with tempfile.TemporaryDirectory(prefix="bundles-") as folder:
    _add_libtpu_flags(bundles_lib.dump_flags(folder))
    run = create_run(config, planned)
    report = _describe_phase(run, planned, name)
    try:
      compiled = compile_step(run, name)
    except jax.errors.JaxRuntimeError as e:
      overflow = _read_overflow(str(e), report, f"{name} on {planned}")
      if overflow is None:
        raise
      return report | overflow
    bundles = bundles_lib.read(folder)
  text = compiled.as_text()
  if hlo_dir:
    paths.write_file(paths.as_path(hlo_dir) / f"{name}.txt", text)
  memory = report["memory_bytes"] | _read_memory(text, compiled)
  memory["total"] = sum(memory.values())
  return (
    report
    | {"fits": True, "memory_bytes": memory}
    | _read_times(text, run, planned, report, bundles)
  )


def create_run(config, planned):
  """Returns a `Run` on the devices of a slice."""
  return run_lib.create_planned_run(config, slices.describe_devices(planned))


def _add_libtpu_flags(flags):
  """Adds flags for libtpu, which reads them at its first use."""
  ours = slices.LIBTPU_SETTINGS["LIBTPU_INIT_ARGS"]
  given = os.environ.get("LIBTPU_INIT_ARGS", ours)
  os.environ["LIBTPU_INIT_ARGS"] = f"{given} {flags}"


def compile_step(run, name):
  """Compiles the train step of phase `name` for the run's mesh."""
  return compiler_options.compile_step(lower_step(run, name))


def lower_step(run, name):
  """Lowers the train step of phase `name`, to a `jax.stages.Lowered`."""
  state = run_lib.abstract_sharded_state(run)
  train_step = objective.make_train_step(run, name, state)
  return train_step.lower(state, run_lib.abstract_batch(run, name))


def sharding_table(run):
  """Lists how every parameter is sharded between steps.

  Args:
    run: `Run`.

  Returns:
    list of (path, shape, logical axes, mesh axes, bytes a device).
  """
  params = run_lib.abstract_sharded_state(run).params
  rows = []
  for path, leaf in jax.tree.leaves_with_path(params):
    name = "/".join(entry.key for entry in path)
    axes = partitioning.param_axes(name, leaf.shape)
    spec = tuple(leaf.sharding.spec)
    rows.append((name, leaf.shape, axes, spec, partitioning.device_bytes(leaf)))
  return rows


def _describe_phase(run, planned, name):
  """Returns what a report has without a compilation: sizes, state, FLOPs."""
  phase = run.config[name]
  state = run_lib.abstract_sharded_state(run)
  model_flops = flops.count_train_flops(
    run.bert_config,
    phase.batch_size,
    phase.max_seq_length,
    phase.max_predictions,
  )
  peak = planned.num_devices * planned.rates.peak_flops
  return {
    "mesh": dict(run.mesh.shape),
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    "max_seq_length": phase.max_seq_length,
    "batch_size": phase.batch_size,
    "grad_accumulation": run.config.optimizer.grad_accumulation,
    "remat": run.config.model.remat,
    "num_steps": phase.num_steps,
    "model_flops": model_flops,
    "best_step_seconds": model_flops / peak,
    "hbm_bytes": planned.generation.hbm_bytes,
    "memory_bytes": {
      "parameters": partitioning.device_bytes(state.params),
      "optimizer": partitioning.device_bytes(state.opt_state),
      "batch": partitioning.device_bytes(run_lib.abstract_batch(run, name)),
    },
  }


def _read_memory(text, compiled):
  """Returns the bytes of a device's memory that only the compiler knows."""
  allocated = memory_lib.count_step_bytes(compiled, "tpu")
  activations = min(memory_lib.count_activations(text), allocated)
  return {
    "activations": activations,
    "temporaries": allocated - activations,
    "program": compiled.memory_analysis().generated_code_size_in_bytes,
  }


def _read_times(text, run, planned, report, bundles):
  """Returns the estimates of a step's time, and of its parts."""
  devices = run.mesh.devices.ravel()
  cost, best_cost = (
    cost_lib.estimate(
      text,
      planned.rates,
      planned.torus(devices, in_the_middle=in_the_middle),
      bundles,
    )
    for in_the_middle in (False, True)
  )
  best = report["best_step_seconds"]
  seconds = max(cost.seconds, best)
  parts = _time_parts(cost)
  parts["matrix multiplications"] += seconds - cost.seconds
  return {
    "compute_seconds": cost.compute_seconds,
    "kernel_seconds": cost.kernel_seconds,
    "kernel_roofline_seconds": cost.roofline_seconds,
    "row_seconds": cost.row_seconds,
    "work_part_seconds": _work_parts(cost, planned.rates.clock_hz),
    "collective_seconds": cost.collective_seconds,
    "exposed_collective_seconds": cost.exposed_seconds,
    "collective_bytes": dict(cost.collective_bytes),
    "collective_count": dict(cost.collective_count),
    "no_estimate": dict(cost.uncosted),
    "step_seconds": seconds,
    "step_seconds_range": [
      max(RANGE[0] * best_cost.seconds, best),
      RANGE[1] * seconds,
    ],
    "mfu": best / seconds,
    "sequences_per_second": report["batch_size"] / seconds,
    "part_seconds": parts,
    "bound_by": max(parts, key=parts.get),
  }


def _time_parts(cost):
  """Splits the seconds of a step by what the chip is busy with."""
  return {
    "matrix multiplications": cost.matmul_seconds,
    "attention kernels": cost.kernel_seconds,
    "vector work": cost.compute_seconds - cost.matmul_seconds,
    "embedding rows": cost.row_seconds,
    "waiting for links": cost.exposed_seconds,
  }


def _work_parts(cost, clock_hz):
  """Splits the compiler's estimates by part of the model, in seconds."""
  parts = collections.Counter()
  for op, cycles in cost.cycles_by_op.items():
    found = (part for part, pattern in _WORK_PARTS if re.search(pattern, op))
    # A fusion's cycles are booked on the part of its last operation.
    parts[next(found, "update and rest")] += cycles / clock_hz
  return dict(parts)


def _read_overflow(message, report, where):
  """Reads how much memory a step needs that does not fit, from libtpu's error.

  Args:
    message: str of the error.
    report: see `_describe_phase`; the memory that the step needs is added.
    where: names phase and slice, for the error.

  Returns:
    dict to add to the report, or None if the message is about something else.

  Raises:
    UserError: a kernel or fusion overflows VMEM.
  """
  if "memory space vmem" in message:
    sizes = re.search(r"([\d.]+\w) (?:of|and limit) ([\d.]+\w)", message)
    used = f" ({sizes[1]} of {sizes[2]})" if sizes else ""
    raise UserError(
      f"{where} overflows the chip's vector memory (VMEM){used}; expected a "
      "step that fits (set this phase's max_seq_length lower or to a multiple "
      "of 128, or config.optimizer.grad_accumulation higher)"
    )
  memory = report["memory_bytes"]
  temporaries = _missing_memory(message, memory)
  if temporaries is None:
    return None
  memory["activations_and_temporaries"] = temporaries
  return {"fits": False, "needed_bytes": sum(memory.values())}


def _missing_memory(message, known):
  """Reads the bytes of activations and temporaries from libtpu's error.

  Args:
    message: str of the error.
    known: dict of kind to bytes of everything else.

  Returns:
    float, or None where the message is about something else.
  """
  match = "RESOURCE_EXHAUSTED" in message and _OUT_OF_MEMORY.search(message)
  if not match:
    return None
  if match["temporaries"]:
    return _parse_size(match["temporaries"])
  return _parse_size(match["all"]) - sum(known.values())


def _parse_size(text):
  """Reads the bytes of "184.51G", as libtpu writes sizes."""
  return float(text[:-1]) * 2.0 ** (10 * (1 + "KMGT".index(text[-1])))
