"""Tells what a run would take on a TPU slice that nobody holds.

    python -m bert_jax.plan --config=configs/bert_base.py --topology=v5e:4x4 \\
        --price_per_chip_hour=1.2

Compiles the step of each phase, the one that `train` runs, with the TPU's own
compiler (`pip install jax[tpu]`; a CPU is enough) and reads its estimates. Both
phases of BERT-base took over six minutes of processor time.

How far to trust the time of a step: the compiler's cycles were held against
data sheets on v5e. Large matrix products came out at 1.03 times their
datasheet time, float32 arithmetic bound by memory at 1.24 times, bfloat16
elementwise work at up to 2.5 times. Gathers, sorts and scatters carry no
estimate, and collectives are modelled (see hlo_cost.py), with no contention
and no start-up. So the range runs from 0.8 to 1.4 times the estimate, and
never below the time that the matrix products alone take at the peak. Nothing
here was timed on a TPU. Reading text, evaluation and checkpoints come on top.
"""

import json
import re
import sys

import jax
import numpy as np
from absl import flags
from etils import epath

from bert_jax import (
  command,
  flops,
  hlo_cost,
  partitioning,
  pretraining,
  topology,
)
from bert_jax import run as run_lib
from bert_jax.config import validate
from bert_jax.errors import UserError

# See the module's docstring.
RANGE = (0.8, 1.4)


def plan(config, topology_name, price_per_chip_hour=None, hlo_dir=None):
  """Plans a run.

  Args:
    config: the run's settings.
    topology_name: see `topology.find_slice`.
    price_per_chip_hour: in any currency, or None.
    hlo_dir: folder for `phase1.txt` and `phase2.txt`, or None.

  Returns:
    dict of what `--json` prints; seconds, bytes and FLOPs.

  Raises:
    UserError: the settings or the slice are not as they must be.
  """
  validate(config)
  generation, shape = topology.find_slice(topology_name)
  devices = topology.describe_devices(generation, shape)
  run = run_lib.create_planned_run(config, devices)
  report = {
    "topology": f"{generation.prefixes[0]}:{'x'.join(map(str, shape))}",
    "chips": len(devices),
    "mesh": dict(run.mesh.shape),
    "parameters": sum(
      leaf.size for leaf in jax.tree.leaves(run_lib.abstract_state(run).params)
    ),
    "phases": {},
  }
  for name in run_lib.PHASES:
    if config[name].num_steps:
      print(f"plan: compiling {name}", file=sys.stderr, flush=True)
      report["phases"][name] = plan_phase(run, name, generation, hlo_dir)
  return report | _total(report, price_per_chip_hour)


def plan_phase(run, name, generation, hlo_dir=None):
  """Compiles and reads one phase; arguments and result as for `plan`."""
  phase, chips = run.config[name], run.mesh.size
  model_flops = flops.count_train_flops(
    run.bert_config,
    phase.batch_size,
    phase.max_seq_length,
    phase.max_predictions,
  )
  report = {
    "max_seq_length": phase.max_seq_length,
    "batch_size": phase.batch_size,
    "num_steps": phase.num_steps,
    "model_flops": model_flops,
    "hbm_bytes": generation.hbm_bytes,
  }
  try:
    compiled = compile_step(run, name)
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    return report | {"fits": False, "why": _exhausted(e)}
  text = compiled.as_text()
  if hlo_dir:
    folder = epath.Path(hlo_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_text(text)
  cost = hlo_cost.estimate(
    text,
    generation.clock_hz,
    generation.link_bytes_per_second,
    generation.num_links,
  )
  memory = _memory(run, name, compiled.memory_analysis())
  best_seconds = model_flops / (chips * generation.peak_flops)
  seconds = max(cost.seconds, best_seconds)
  low = max(RANGE[0] * seconds, best_seconds)
  # What is neither a matrix product at the peak nor waiting for the links.
  parts = {
    "matrix products": best_seconds,
    "links": cost.exposed_seconds,
    "memory and vector work": seconds - best_seconds - cost.exposed_seconds,
  }
  return report | {
    "fits": memory["total"] <= generation.hbm_bytes,
    "memory_bytes": memory,
    "compute_seconds": cost.compute_seconds,
    "collective_seconds": cost.collective_seconds,
    "exposed_collective_seconds": cost.exposed_seconds,
    "collective_bytes": dict(cost.collective_bytes),
    "collective_count": dict(cost.collective_count),
    "no_estimate": dict(cost.uncosted),
    "step_seconds": seconds,
    "step_seconds_range": [low, RANGE[1] * seconds],
    "best_step_seconds": best_seconds,
    "mfu": best_seconds / seconds,
    "sequences_per_second": phase.batch_size / seconds,
    "part_seconds": parts,
    "bound_by": max(parts, key=parts.get),
  }


def compile_step(run, name):
  """Compiles the train step of phase `name` for the run's mesh."""
  state = run_lib.abstract_sharded_state(run)
  train_step = pretraining.make_train_step(run, name, state)
  return train_step.lower(state, run_lib.abstract_batch(run, name)).compile()


def sharding_table(run):
  """Lists how every parameter is split.

  Args:
    run: `Run`.

  Returns:
    list of (path, shape, logical axes, mesh axes between the steps, bytes a
    device between the steps).
  """
  params = run_lib.abstract_sharded_state(run).params
  rows = []
  for path, leaf in jax.tree.leaves_with_path(params):
    name = "/".join(entry.key for entry in path)
    axes = partitioning.param_axes(name, leaf.shape)
    spec = tuple(leaf.sharding.spec)
    rows.append((name, leaf.shape, axes, spec, _device_bytes(leaf)))
  return rows


def _device_bytes(leaf):
  shape = leaf.sharding.shard_shape(leaf.shape)
  return int(np.prod(shape, dtype=np.int64)) * leaf.dtype.itemsize


def _memory(run, name, analysis):
  """Splits the memory of a chip by what fills it, in bytes."""
  state = run_lib.abstract_sharded_state(run)

  def held(tree):
    return sum(map(_device_bytes, jax.tree.leaves(tree)))

  kinds = {
    "parameters": held(state.params),
    "optimizer": held(state.opt_state),
    "batch": held(run_lib.abstract_batch(run, name)),
    "activations_and_temporaries": analysis.temp_size_in_bytes,
    "program": analysis.generated_code_size_in_bytes,
  }
  return kinds | {"total": sum(kinds.values())}


def _exhausted(error):
  """Returns the compiler's sentence about memory."""
  match = re.search(
    r"Used [^.]*\.\d+\w* of [^.]*\.\d+\w* hbm[^\n]*", str(error)
  )
  return match.group() if match else str(error).splitlines()[0][:200]


def _total(report, price_per_chip_hour):
  """Adds the phases up: hours, and money if there is a price."""
  phases = report["phases"].values()
  if not all(phase["fits"] for phase in phases):
    return {"fits": False}

  def hours(seconds_of):
    return sum(p["num_steps"] * seconds_of(p) for p in phases) / 3600

  total = {
    "fits": True,
    "hours": hours(lambda p: p["step_seconds"]),
    "hours_range": [
      hours(lambda p, i=i: p["step_seconds_range"][i]) for i in (0, 1)
    ],
  }
  if price_per_chip_hour is not None:
    chip_price = report["chips"] * price_per_chip_hour
    total["money"] = chip_price * total["hours"]
    total["money_range"] = [chip_price * h for h in total["hours_range"]]
  return total


def format_report(report):
  """Turns what `plan` returns into text."""
  lines = [
    f"{report['topology']}, {report['chips']} devices as "
    + " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    + f", {report['parameters']:,} parameters"
  ]
  for name, phase in report["phases"].items():
    lines += _format_phase(name, phase)
  if report["fits"]:
    low, high = report["hours_range"]
    lines.append(
      f"whole run: {report['hours']:.2f} hours ({low:.2f} to {high:.2f}), "
      "without evaluation and checkpoints"
    )
    if "money" in report:
      low, high = report["money_range"]
      lines.append(
        f"  money {report['money']:,.2f} ({low:,.2f} to {high:,.2f})"
      )
  for name, shape, axes, spec, num_bytes in report.get("shardings", ()):
    lines.append(
      f"{name}  {shape}  {axes}  {spec}  {num_bytes:,} bytes a device"
    )
  return "\n".join(lines)


def _format_phase(name, phase):
  head = (
    f"{name}: {phase['batch_size']:,} x {phase['max_seq_length']}, "
    f"{phase['num_steps']:,} steps, {phase['model_flops'] / 1e12:.2f} model "
    "TFLOPs a step"
  )
  if "why" in phase:
    return [
      head,
      f"  DOES NOT FIT: {phase['why']}",
      f"  what may make it fit: a smaller {name}.batch_size, a larger "
      "optimizer.grad_accumulation, more chips",
    ]
  memory, low_high = phase["memory_bytes"], phase["step_seconds_range"]
  parts = ", ".join(
    f"{kind.replace('_', ' ')} {size / 1e9:.3f}"
    for kind, size in memory.items()
    if kind != "total"
  )
  moved = ", ".join(
    f"{phase['collective_count'][kind]} {kind} {size / 1e6:,.0f} MB"
    for kind, size in phase["collective_bytes"].items()
  )
  return [
    head,
    f"  {'fits' if phase['fits'] else 'DOES NOT FIT'}: "
    f"{memory['total'] / 1e9:.2f} of {phase['hbm_bytes'] / 1e9:.0f} GB a chip "
    f"({parts})",
    f"  step {1e3 * phase['step_seconds']:.2f} ms "
    f"({1e3 * low_high[0]:.1f} to {1e3 * low_high[1]:.1f}): work "
    f"{1e3 * phase['compute_seconds']:.2f}, exposed collectives "
    f"{1e3 * phase['exposed_collective_seconds']:.2f} of "
    f"{1e3 * phase['collective_seconds']:.2f}",
    f"  {phase['sequences_per_second']:,.0f} sequences/s, MFU "
    f"{phase['mfu']:.2f}; at the peak a step takes "
    f"{1e3 * phase['best_step_seconds']:.2f} ms",
    f"  collectives: {moved or 'none'}",
    f"  bound by {phase['bound_by']} (ms of the step: "
    + ", ".join(f"{k} {1e3 * v:.2f}" for k, v in phase["part_seconds"].items())
    + ")",
  ]


def main(argv):
  """Runs the command."""
  del argv
  config = command.config()
  name = flags.FLAGS.topology
  if not name:
    raise UserError(
      f"--topology is missing; expected one of {topology.known_slices()}"
    )
  jax.config.update("jax_platforms", "cpu")
  report = plan(config, name, flags.FLAGS.price_per_chip_hour, flags.FLAGS.hlo)
  if flags.FLAGS.shardings:
    devices = topology.describe_devices(*topology.find_slice(name))
    run = run_lib.create_planned_run(config, devices)
    report["shardings"] = sharding_table(run)
  print(json.dumps(report) if flags.FLAGS.json else format_report(report))


if __name__ == "__main__":
  command.define_config_flag()
  flags.DEFINE_string(
    "topology", None, "Slice, such as v5e:4x4, v5litepod-16, v4-32 or v6e-16."
  )
  flags.DEFINE_float("price_per_chip_hour", None, "Price of one chip.")
  flags.DEFINE_bool("json", False, "Print JSON instead of text.")
  flags.DEFINE_string("hlo", None, "Folder to keep the compiled programs in.")
  flags.DEFINE_bool("shardings", False, "Also list how parameters are split.")
  command.run(main)
