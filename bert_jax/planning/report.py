"""Formats plans as text."""

from bert_jax.planning import slices

_GIB = 2**30
_COLUMNS = (
  "slice",
  "chips",
  "data x fsdp x model",
  "micro-batches",
  "GiB a device",
  "step ms",
  "hours",
  "money",
)

# What a part of a step's time is, after its name.
_PART_NOTES = {
  "matrix multiplications": ", with what the compiler fuses into them",
  "attention kernels": ": scores, softmax and dropout of all layers",
  "vector work": ": LayerNorm, gelu, dropout, AdamW, and reading memory",
  "embedding rows": ": lookup, and adding up its gradient",
  "waiting for links": ": weights and gradients between chips (ICI)",
}


def format_any(report):
  """Formats what `run_plan.plan_slices` returned."""
  return (format_comparison if "candidates" in report else format_plan)(report)


def format_plan(report):
  """Formats what `run_plan.plan` returned."""
  lines = [
    f"{_format_slice(report)}, "
    f"{report['devices']} devices as {_format_mesh(report['mesh'])}, "
    f"{report['parameters']:,} parameters"
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
    lines.append(f"  {_format_energy(report)}")
  for name, shape, axes, spec, num_bytes in report.get("shardings", ()):
    lines.append(
      f"{name}  {shape}  {axes}  {spec}  {num_bytes:,} bytes a device"
    )
  return "\n".join(lines)


def _format_energy(report):
  if report["energy_kwh"] is None:
    return (
      "energy: not estimated, no power of this chip is published "
      "(--watts_per_chip takes a figure of yours)"
    )
  return (
    f"energy {report['energy_kwh']:,.0f} kWh of the chips alone, a rule of "
    f"thumb: {report['chips']} chips x {report['hours']:.2f} hours x "
    f"{report['watts_per_chip']:,.0f} W ({report['watts_source']})"
  )


def format_comparison(report):
  """Formats the candidates of a comparison or search as a table."""
  candidates = report["candidates"]
  rows = [_COLUMNS]
  rows += [_candidate_row(c) for c in sorted(candidates, key=_rank)]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
  lines += [
    f"{_format_slice(c)} {_format_mesh(c['mesh'])}: {c['error']}"
    for c in candidates
    if "error" in c
  ]
  if report["left_out"]:
    lines.append(
      f"{report['left_out']} more meshes were not tried (--max_candidates)"
    )
  return "\n".join(lines + _format_best(candidates))


def _format_best(candidates):
  """Returns lines with the fastest and the cheapest candidate."""
  fitting = [c for c in candidates if c["fits"]]
  if not fitting:
    return ["nothing fits; plan one slice alone for settings that would fit"]
  fastest = min(fitting, key=lambda c: c["hours"])
  lines = [f"fastest: {_format_choice(fastest)}"]
  kinds = {c["topology"].split(":")[0] for c in fitting}
  if all("money" in c for c in fitting):
    cheapest = min(fitting, key=lambda c: c["money"])
    lines.append(f"cheapest: {_format_choice(cheapest)}")
  elif len(kinds) == 1:
    cheapest = min(fitting, key=lambda c: c["chip_hours"])
    lines.append(f"cheapest, by chip-hours: {_format_choice(cheapest)}")
  else:
    lines.append("cheapest: not known without --price_per_chip_hour")
  return lines


def _format_choice(candidate):
  money = f", money {candidate['money']:,.2f}" if "money" in candidate else ""
  return (
    f"{_format_slice(candidate)}, {candidate['hours']:.2f} hours{money}\n"
    f"  {candidate['overrides']}"
  )


def _format_slice(candidate):
  """Returns a slice's shape, name and chips; some names count cores."""
  return (
    f"{candidate['topology']} ({candidate['name']}, {candidate['chips']} chips)"
  )


def _rank(candidate):
  return not candidate["fits"], candidate.get("hours", 0.0)


def _candidate_row(candidate):
  sizes = " x ".join(map(str, candidate["mesh"].values()))
  name = f"{candidate['topology']} ({candidate['name']})"
  head = (name, str(candidate["chips"]), sizes)
  phases = candidate.get("phases")
  if not phases:
    return (*head, "", "", "failed", "", "")
  phases = phases.values()
  needed = max(p.get("needed_bytes") or _used(p) for p in phases)
  first = next(iter(phases))
  memory = f"{needed / _GIB:.2f} of {_gib(first['hbm_bytes'])}"
  micro_batches = f"{first['grad_accumulation']}{', remat' * first['remat']}"
  if not candidate["fits"]:
    return (*head, micro_batches, memory, "does not fit", "", "")
  times = " + ".join(f"{1e3 * p['step_seconds']:.2f}" for p in phases)
  money = f"{candidate['money']:,.2f}" if "money" in candidate else ""
  return (
    *head,
    micro_batches,
    memory,
    times,
    f"{candidate['hours']:.2f}",
    money,
  )


def _used(phase):
  return phase["memory_bytes"]["total"]


def _gib(num_bytes):
  return f"{num_bytes / _GIB:.2f}"


def _format_mesh(mesh):
  return " x ".join(f"{axis} {size}" for axis, size in mesh.items())


def _format_phase(name, phase):
  head = (
    f"{name}: {phase['batch_size']:,} x {phase['max_seq_length']}, "
    f"{phase['num_steps']:,} steps, {phase['model_flops'] / 1e12:.2f} model "
    "TFLOPs a step"
  )
  if not phase["fits"]:
    return [head, *_format_missing(phase)]
  return [
    head,
    f"  fits: {_gib(_used(phase))} of {_gib(phase['hbm_bytes'])} GiB a device "
    f"({_format_memory(phase['memory_bytes'])})",
    *_format_times(phase),
  ]


def _format_memory(memory):
  return ", ".join(
    f"{kind.replace('_', ' ')} {size / _GIB:.3f}"
    for kind, size in memory.items()
    if kind != "total"
  )


def _format_missing(phase):
  missing = phase["needed_bytes"] - phase["hbm_bytes"]
  lines = [
    f"  DOES NOT FIT: needs {_gib(phase['needed_bytes'])} GiB a device, "
    f"{_gib(missing)} more than the {_gib(phase['hbm_bytes'])} there are "
    f"({_format_memory(phase['memory_bytes'])})"
  ]
  if phase["would_fit"]:
    lines.append("  would fit, by arithmetic on shapes (--search compiles it):")
  else:
    lines.append("  no single setting would make it fit")
  return lines + [
    f"    {change}{_chips_of(change)}  {_gib(num_bytes)} GiB"
    for change, num_bytes in phase["would_fit"]
  ]


def _chips_of(change):
  """Returns " (16 chips)" for "--topology=v5e:4x4", "" for other settings."""
  _, _, name = change.partition("--topology=")
  return f" ({slices.find_slice(name).num_chips} chips)" if name else ""


def _format_times(phase):
  low, high = phase["step_seconds_range"]
  moved = ", ".join(
    f"{phase['collective_count'][kind]} {kind} {size / 1e6:,.0f} MB"
    for kind, size in phase["collective_bytes"].items()
  )
  lines = [
    f"  step {1e3 * phase['step_seconds']:.2f} ms "
    f"({1e3 * low:.1f} to {1e3 * high:.1f}), "
    f"{phase['sequences_per_second']:,.0f} sequences/s",
    f"  limit: {1e3 * phase['best_step_seconds']:.2f} ms at the chip's peak "
    f"rate (MFU {phase['mfu']:.2f})",
    "  a step's time goes to",
  ]
  lines += [_format_part(part, phase) for part in phase["part_seconds"]]
  lines.append(
    f"  sent over the links: {moved or 'nothing'}; "
    f"{1e3 * phase['collective_seconds']:.2f} ms, most of it during other work"
  )
  if phase["kernel_seconds"]:
    lines.append(
      "  attention kernels count by the instructions that the compiler emits, "
      "or at their roofline ("
      f"{1e3 * phase['kernel_roofline_seconds']:.2f} ms) where that is longer"
    )
  counts = phase["no_estimate"].items()
  unpriced = ", ".join(f"{n} {kind}" for kind, n in counts)
  lines.append(f"  unpriced, taken as 0 ms: {unpriced or 'nothing'}")
  return lines


def _format_part(part, phase):
  seconds = phase["part_seconds"][part]
  return (
    f"    {1e3 * seconds:8.2f} ms {seconds / phase['step_seconds']:4.0%}  "
    f"{part}{_PART_NOTES[part]}"
  )
