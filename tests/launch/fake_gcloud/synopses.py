"""Which gcloud commands there are, and the flags that each takes.

From Google's reference of the commands (GA, without alpha and beta), as of
2026; a flag that is not here is refused as gcloud refuses it.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Synopsis:
  """What a command takes.

  Attributes:
    arguments: how many positional arguments, (least, most).
    required: flags that must be there.
    optional: flags that may be.
  """

  arguments: tuple
  required: frozenset
  optional: frozenset


def _synopsis(arguments, required="", optional=""):
  return Synopsis(
    arguments, frozenset(required.split()), frozenset(optional.split())
  )


WIDE_FLAGS = frozenset(("--project", "--quiet", "--format"))
_QUEUED = "compute tpus queued-resources"
_GROUPS = "compute instance-groups managed"
SYNOPSES = {
  f"{_QUEUED} create": _synopsis(
    (1, 1),
    "--zone --node-id --accelerator-type --runtime-version",
    "--spot --internal-ips --network --subnetwork --service-account --scopes "
    "--metadata-from-file --labels --tags --valid-until-duration --data-disk "
    "--reserved --guaranteed --async",
  ),
  f"{_QUEUED} describe": _synopsis((1, 1), "--zone"),
  f"{_QUEUED} delete": _synopsis((1, 1), "--zone", "--force --async"),
  "compute resource-policies create workload-policy": _synopsis(
    (1, 1), "--type --region", "--accelerator-topology"
  ),
  "compute resource-policies delete": _synopsis((1, 1), "--region"),
  "compute instance-templates create": _synopsis(
    (1, 1),
    "--machine-type --instance-template-region --image-family "
    "--image-project --maintenance-policy --boot-disk-size",
    "--scopes --service-account --no-address --provisioning-model "
    "--instance-termination-action --max-run-duration --reservation-affinity "
    "--metadata-from-file",
  ),
  "compute instance-templates delete": _synopsis((1, 1), "--region"),
  f"{_GROUPS} create": _synopsis(
    (1, 1),
    "--zone --size --template --target-size-policy-mode --workload-policy",
    "--default-action-on-vm-failure",
  ),
  f"{_GROUPS} resize": _synopsis((1, 1), "--zone --size"),
  f"{_GROUPS} list-instances": _synopsis((1, 1), "--zone"),
  f"{_GROUPS} list-errors": _synopsis((1, 1), "--zone", "--limit"),
  f"{_GROUPS} delete": _synopsis((1, 1), "--zone"),
  "iam service-accounts describe": _synopsis((1, 1)),
  "storage buckets describe": _synopsis((1, 1)),
  "storage ls": _synopsis((1, 1)),
  "storage cat": _synopsis((1, 1), optional="--range --display-url"),
  "storage rm": _synopsis((1, 1)),
  "storage cp": _synopsis((2, 2), optional="--recursive"),
  "storage rsync": _synopsis((2, 2), optional="--recursive"),
}
_SWITCHES = frozenset(
  (
    "--spot",
    "--internal-ips",
    "--reserved",
    "--guaranteed",
    "--async",
    "--force",
    "--quiet",
    "--recursive",
    "--display-url",
    "--no-address",
  )
)


def parse(words):
  """Parses a gcloud command line.

  Args:
    words: list of str, without `gcloud` itself.

  Returns:
    (command, positional arguments, {flag: value}).

  Raises:
    ValueError: with what gcloud would say of it.
  """
  command = max(
    (c for c in SYNOPSES if words[: len(c.split())] == c.split()),
    key=len,
    default=None,
  )
  if command is None:
    raise ValueError(f"Invalid choice: {' '.join(words[:4])!r}.")
  arguments, flags = [], {}
  for word in words[len(command.split()) :]:
    if not word.startswith("--"):
      arguments.append(word)
      continue
    flag, equals, value = word.partition("=")
    if bool(equals) == (flag in _SWITCHES):
      raise ValueError(f"argument {flag}: expected one argument, or none")
    flags[flag] = value
  _check(command, arguments, flags)
  return command, arguments, flags


def _check(command, arguments, flags):
  synopsis = SYNOPSES[command]
  unknown = flags.keys() - synopsis.required - synopsis.optional - WIDE_FLAGS
  if unknown:
    raise ValueError(f"unrecognized arguments: {' '.join(sorted(unknown))}")
  missing = synopsis.required - flags.keys()
  if missing:
    raise ValueError(f"argument {' '.join(sorted(missing))}: must be specified")
  least, most = synopsis.arguments
  if not least <= len(arguments) <= most:
    raise ValueError(f"{len(arguments)} arguments, expected {least} to {most}")
  if not command.startswith("storage") and "--project" not in flags:
    # gcloud would take it from a configuration that may be another's.
    raise ValueError("argument --project: must be specified")
