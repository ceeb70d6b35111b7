"""Counts the instructions that a TPU's compiler emits for Pallas kernels.

The compiler estimates no time for them. What it emits are VLIW bundles,
one a cycle at best: those of one step of a kernel's grid, times the steps, are
a lower bound of its time, beside the roofline that its author gave.
"""

import pathlib
import re

_LABEL = "final_hlo-static-per-bundle-utilization"
_FILE = re.compile(rf"\d+-(.+)-\d+-{_LABEL}\.txt")
# A line a bundle, a column a unit of the chip.
_BUNDLE = re.compile(r"[\d ]+\d *")


def dump_flags(folder):
  """Returns the flags of libtpu that make it write what `read` reads.

  Args:
    folder: str, a path without spaces.
  """
  return (
    f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true "
    f"--xla_jf_dump_llo_pass_label_regex={_LABEL}"
  )


def read(folder):
  """Reads the bundles of everything that was compiled.

  Args:
    folder: see `dump_flags`.

  Returns:
    dict of an instruction's name in the program to int; of programs compiled
    one after the other, those of the later one.
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
