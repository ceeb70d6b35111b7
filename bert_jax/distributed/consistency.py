"""What must be the same on every host before the first step.

A host with other code or another version compiles another program, and a slice
whose programs differ hangs or computes nonsense without a word.
"""

import collections
import hashlib
import importlib.metadata
import pathlib
import platform

import jax

import bert_jax
from bert_jax.config import flatten
from bert_jax.errors import UserError

_PACKAGES = (
  "jax",
  "jaxlib",
  "libtpu",
  "flax",
  "optax",
  "orbax-checkpoint",
  "numpy",
)


def compare(hosts, facts):
  """Checks that all hosts have the same facts.

  Args:
    hosts: `Hosts`; all of them call this.
    facts: flat dict, JSON-able.

  Raises:
    UserError: they differ; names the first ones, and who has which.
  """
  gathered = hosts.gather(facts)
  keys = dict.fromkeys(key for other in gathered for key in other)
  differing = [
    f"{key} is {_who_has_which(hosts, [other.get(key) for other in gathered])}"
    for key in keys
    if any(other.get(key) != gathered[0].get(key) for other in gathered)
  ]
  if differing:
    more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
    raise UserError(
      f"the hosts differ: {'; '.join(differing[:3])}{more}; expected the same "
      "on all (install and start them alike)"
    )


def _who_has_which(hosts, values):
  indices = collections.defaultdict(list)
  for index, value in enumerate(values):
    indices[str(value)].append(f"{index} ({hosts.names[index]})")
  return ", ".join(
    f"{value} on host {' and '.join(who)}" for value, who in indices.items()
  )


def software(config):
  """Returns the facts about code, versions and settings."""
  facts = {"the code of bert_jax": code_digest()}
  facts["python"] = platform.python_version()
  facts |= {package: _version(package) for package in _PACKAGES}
  return facts | {f"config.{k}": v for k, v in flatten(config).items()}


def devices():
  """Returns the facts about this host's devices; finds them if need be."""
  local = jax.local_devices()
  return {
    "the kind of device": local[0].device_kind,
    "the number of devices": len(local),
    "the number of all devices": jax.device_count(),
  }


def code_digest():
  """Returns a str that changes with any source file of the package."""
  package = pathlib.Path(bert_jax.__file__).parent
  digest = hashlib.sha256()
  for path in sorted(package.rglob("*.py")):
    digest.update(f"{path.relative_to(package)}\n".encode())
    digest.update(path.read_bytes())
  return digest.hexdigest()[:12]


def _version(package):
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None
