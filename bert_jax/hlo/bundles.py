"""Counts the VLIW bundles that a TPU's compiler emits for Pallas kernels.

The compiler estimates no time for Pallas kernels. A core runs at most one
bundle a cycle, so the bundles of a grid step times the number of grid steps are
a lower bound of a kernel's time, as its roofline is another.
"""

import pathlib
import re

_LABEL = "final_hlo-static-per-bundle-utilization"
_FILE = re.compile(rf"\d+-(.+)-\d+-{_LABEL}\.txt")
# One line per bundle, one column per unit of the core.
_BUNDLE = re.compile(r"[\d ]+\d *")


def dump_flags(folder):
  """Returns flags for libtpu to write the files that `read` reads.

  Args:
    folder: str to write to, a path without spaces.

  Returns:
    str for the environment variable LIBTPU_INIT_ARGS.
  """
  return (
    f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true "
    f"--xla_jf_dump_llo_pass_label_regex={_LABEL}"
  )


def read(folder):
  """Counts the bundles of everything that was compiled.

  Args:
    folder: see `dump_flags`.

  Returns:
    dict of an HLO instruction's name to its number of bundles. Where several
    programs were compiled, the last one counts.
  """
  found = {}
  for path in sorted(pathlib.Path(folder).iterdir()):
    name = _FILE.fullmatch(path.name)
    if name:
      _, _, lines = path.read_text().partition("== UTILIZATION:\n")
      found[name[1]] = sum(
        bool(_BUNDLE.fullmatch(line)) for line in lines.splitlines()
      )
  return found
