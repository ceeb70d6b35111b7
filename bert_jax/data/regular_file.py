"""Tells regular files from pipes and devices, which may never end."""

import os
import stat


def is_regular(path):
  """Tells whether a path is a regular file, or a link to one.

  `epath.Path.is_file` is true of all but folders: reading a pipe would wait for
  ever, and reading /dev/zero would never end.

  Args:
    path: `epath.Path`, of a disk or of a bucket.

  Returns:
    bool; False where there is nothing.
  """
  if "://" in str(path):
    return path.exists() and not path.is_dir()
  try:
    return stat.S_ISREG(os.stat(path).st_mode)
  except FileNotFoundError:
    return False
