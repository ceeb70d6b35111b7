"""The exceptions that commands tell in one line."""


class UserError(Exception):
  """A mistake in what the user gave: a flag, a config, a file.

  The message is one line that names the thing, the value seen, the value
  expected and, where it helps, where to change it. Commands print it without
  a traceback and exit with `status`.
  """

  status = 2


class StorageError(UserError):
  """Storage that does not answer now; the same command may work later.

  By the exit status a supervisor knows that it may start the command again.
  """

  status = 1


class DoesNotFitError(Exception):
  """A program that wants more memory than there is."""
