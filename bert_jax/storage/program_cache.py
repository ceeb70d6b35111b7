"""Keeps compiled programs for the next start of a run."""

import hashlib
import os
import platform
import re

import jax

from bert_jax.storage import paths

_CPUINFO = "/proc/cpuinfo"


def keep_programs(workdir):
  """Keeps compiled programs in the workdir, unless JAX keeps them elsewhere.

  A folder for each kind of device and processor: JAX's own key does not know
  the processor's features, and a program that uses others than are there ends
  the process.

  Args:
    workdir: `epath.Path` of the run.
  """
  if jax.config.jax_compilation_cache_dir is None:
    kind = re.sub(r"\W+", "_", jax.devices()[0].device_kind)
    directory = workdir / "compiled" / f"{kind}-{name_processor()}"
    jax.config.update("jax_compilation_cache_dir", str(directory))
    if paths.is_remote(workdir):
      # XLA itself, on a GPU, can't write its files to an address.
      jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


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
