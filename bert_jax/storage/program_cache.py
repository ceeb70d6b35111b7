"""Stores compiled programs in the workdir, for the next start of the run."""

import hashlib
import json
import os
import platform
import re
import zlib

import jax
from etils import epath

from bert_jax.storage import paths

_CPUINFO = "/proc/cpuinfo"
# The checksums of JAX's files, in the folder that holds them.
_CHECKSUM_FILE = "checksums.json"
_PROGRAMS = "*-cache"


def keep_programs(workdir, hosts):
  """Keeps compiled programs in the workdir, unless JAX keeps them elsewhere.

  There is a folder for each kind of device and processor: JAX's own key does
  not know the processor's features, and a program that uses a missing one ends
  the process. A damaged program may do so too; one without its checksum is
  deleted, and will be compiled again.

  Args:
    workdir: `epath.Path` of the run.
    hosts: `Hosts`; the first one writes programs, as JAX has it.
  """
  if jax.config.jax_compilation_cache_dir is not None:
    return
  kind = re.sub(r"\W+", "_", jax.devices()[0].device_kind)
  directory = workdir / "compiled" / f"{kind}-{name_processor()}"
  if paths.is_remote(workdir):
    # XLA itself, on a GPU, can't write its files to an address.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
  elif hosts.is_first:
    try:
      _remove_unlisted(directory)
    except OSError as e:
      print(f"compiled programs are not kept: {e}")
      return
  jax.config.update("jax_compilation_cache_dir", str(directory))


def note_programs(workdir):
  """Notes the checksums of the programs that are kept in a workdir by now.

  Args:
    workdir: `epath.Path` of the run; in a bucket there is nothing to note,
      since the service verifies its objects.
  """
  directory = jax.config.jax_compilation_cache_dir
  if directory is None or not directory.startswith(f"{workdir}/"):
    return
  directory = epath.Path(directory)
  if paths.is_remote(directory) or not directory.exists():
    return
  noted = _load_checksums(directory)
  found = {path.name: path for path in directory.glob(_PROGRAMS)}
  if found.keys() == noted.keys():
    return
  noted = {
    name: noted[name] if name in noted else _checksum(path)
    for name, path in found.items()
  }
  paths.write_file(directory / _CHECKSUM_FILE, json.dumps(noted, indent=2))


def _remove_unlisted(directory):
  """Deletes programs without a checksum, or with another than was noted."""
  directory.mkdir(parents=True, exist_ok=True)
  noted = _load_checksums(directory)
  if (directory / _CHECKSUM_FILE).is_dir():
    (directory / _CHECKSUM_FILE).rmtree()
  for path in directory.glob(_PROGRAMS):
    if path.is_dir():
      path.rmtree()
    elif _checksum(path) != noted.get(path.name):
      path.unlink()


def _load_checksums(directory):
  """Returns {name: CRC-32}; empty where none can be read."""
  try:
    return dict(json.loads((directory / _CHECKSUM_FILE).read_text()))
  except (OSError, ValueError, TypeError):
    return {}


def _checksum(path):
  return zlib.crc32(path.read_bytes())


def name_processor(path=_CPUINFO):
  """Returns 12 letters that stand for a processor's model and features.

  Args:
    path: file that says them, as on Linux; elsewhere the model alone counts.
  """
  facts = [platform.machine(), platform.processor()]
  if os.path.exists(path):
    with open(path, encoding="utf-8", errors="replace") as file:
      found = dict(line.split(":", 1) for line in file if ":" in line)
    names = {name.strip(): value.strip() for name, value in found.items()}
    facts += [names.get(n, "") for n in ("model name", "flags", "Features")]
  return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
