"""Checks that all hosts have the same code, versions, settings and devices.

A host with other code or other versions compiles another program; a slice whose
programs differ hangs, or computes wrong numbers without an error.
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
    facts: flat dict, JSON-able: name of a fact to its value on this host.

  Raises:
    UserError: a fact differs; names the first three, and which host has which
      value.
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
  """Returns the facts about this host's devices, and starts JAX's backend."""
  local = jax.local_devices()
  return {
    "the kind of device": local[0].device_kind,
    "the number of devices": len(local),
    "the number of all devices": jax.device_count(),
  }


def code_digest():
  """Returns a hash of every source file of the package, str."""
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
