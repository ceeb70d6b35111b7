"""The one exception that means: the user can mend this."""


class UserError(Exception):
  """A mistake in what the user gave: a flag, a config, a file.

  The message is one line that names the thing, the value seen, the value
  expected and, where it helps, where to change it. Commands print it without
  a traceback and exit with status 2.
  """


class DoesNotFitError(Exception):
  """A program that wants more memory than there is."""
