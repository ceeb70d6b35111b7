"""The client for gs://, registered with fsspec by `paths`."""

import logging

from gcsfs.core import GCSFileSystem

# They log the tracebacks of errors that they raise as well.
for _name in ("fsspec", "gcsfs"):
  logging.getLogger(_name).setLevel(logging.CRITICAL)


class GcsClient(GCSFileSystem):
  """gcsfs without its answer "no such folder" where it could not ask.

  A checkpoint that an outage or a missing permission hides must not look like
  one that was never written: the run would begin anew.
  """

  async def _isdir(self, path):
    try:
      return (await self._info(path))["type"] == "directory"
    except FileNotFoundError:
      return False
