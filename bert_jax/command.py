"""What every command shares: settings in, one-line errors out.

Exit status 0 means success, 2 a mistake that the user can mend and 1 storage
that does not answer, both told in one line without a traceback; anything else
is a fault of ours.
"""

import functools
import os
import re
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from bert_jax.config import default_config, flatten, suggest_key
from bert_jax.errors import UserError
from bert_jax.storage.access import storage_errors_told


def define_config_flags():
  """Defines `--config=FILE --config.a.b=value` and `--workdir=DIR`."""
  define_config_flag()
  define_workdir_flag()


def define_config_flag():
  """Defines `--config=FILE --config.a.b=value`."""
  config_flags.DEFINE_config_file(
    "config", None, "Settings, such as configs/bert_base.py.", lock_config=True
  )


def define_workdir_flag():
  """Defines `--workdir=DIR`."""
  flags.DEFINE_string("workdir", None, "Folder of the run; may be gs://.")


def define_checkpoint_flags():
  """Defines `--workdir=DIR --step=N`: a checkpoint to read."""
  define_workdir_flag()
  define_step_flag()


def define_init_flags():
  """Defines `--init` and what is done with its model."""
  flags.DEFINE_string(
    "init", None, "Model to go on with: workdir, Hugging Face or TF1 folder."
  )
  flags.DEFINE_integer(
    "extend_vocab", 0, "Pieces of the text to add to the vocabulary of --init."
  )
  flags.DEFINE_integer(
    "extend_positions", 0, "Positions that the model of --init shall have."
  )
  flags.DEFINE_enum(
    "init_optimizer",
    "reset",
    ["reset", "keep"],
    "What becomes of Adam's moments.",
  )
  flags.DEFINE_string(
    "teacher",
    None,
    "Larger model whose predictions are learnt: workdir or folder, as --init.",
  )


def init_flags():
  """Returns the flags of `define_init_flags`.

  They are init, extend_vocab, init_optimizer, extend_positions and teacher.
  """
  args = flags.FLAGS
  return (
    args.init,
    args.extend_vocab,
    args.init_optimizer,
    args.extend_positions,
    args.teacher,
  )


def define_step_flag():
  """Defines `--step=N`."""
  flags.DEFINE_string(
    "step", None, "Checkpoint, or best by held-out loss; default: the newest."
  )


def checkpoint_step(may_be_all=False):
  """Returns the checkpoint of the command line: int, "best" or None.

  Args:
    may_be_all: whether "all" is an answer too.

  Raises:
    UserError: it is something else.
  """
  step = flags.FLAGS.step
  words = ("best", "all") if may_be_all else ("best",)
  if step in (None, *words):
    return step
  if not step.isdigit():
    expected = " or ".join(("a number", *words))
    raise UserError(f"--step is {step!r}; expected {expected}")
  return int(step)


def config_and_workdir():
  """Returns the (config, workdir) of the command line.

  Raises:
    UserError: one of them was not given.
  """
  return config(), workdir()


def config():
  """Returns the settings of the command line, a ConfigDict.

  Raises:
    UserError: there is no such file, or none was given.
  """
  if flags.FLAGS.config is None:
    raise UserError("--config is missing; expected a file of configs/")
  try:
    flags.FLAGS.config.keys()
  except OSError:  # how config_flags says that it found no such file
    path = config_flags.get_config_filename(flags.FLAGS["config"])
    raise UserError(
      f"--config={path} is not there; expected a Python file such as "
      "configs/bert_base.py"
    ) from None
  return flags.FLAGS.config


def workdir():
  """Returns the workdir of the command line, a str.

  Raises:
    UserError: it was not given.
  """
  if not flags.FLAGS.workdir:
    raise UserError("--workdir is missing; expected a folder for the run")
  return flags.FLAGS.workdir


def path(name):
  """Returns the path that flag `name` holds, a str.

  Raises:
    UserError: it was not given.
  """
  if not flags.FLAGS[name].value:
    raise UserError(f"--{name} is missing; expected a path")
  return flags.FLAGS[name].value


def run(main, default_config=default_config):
  """Runs `main(argv)` as a command.

  Args:
    main: function of the arguments left after the flags; raises `UserError`
      for what the user can mend.
    default_config: function that returns the settings the command knows.
  """
  _open_closed_streams()
  logging.set_verbosity(logging.WARNING)
  parse_flags = functools.partial(_parse_flags, default_config)
  app.run(_one_line_errors(main), flags_parser=_one_line_errors(parse_flags))


def _open_closed_streams():
  """Opens what the shell closed, as by `>&-`.

  Else the next file opened, such as a checkpoint's, gets the number of standard
  output or error, and with it whatever C++ prints there.
  """
  for number, name in ((1, "stdout"), (2, "stderr")):
    if getattr(sys, name) is None:
      nowhere = os.open(os.devnull, os.O_WRONLY)
      if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)
      setattr(sys, name, os.fdopen(number, "w"))


def _one_line_errors(function):
  def wrapped(argv):
    try:
      with storage_errors_told(_storage_path()):
        return function(argv)
    except UserError as e:
      print(f"error: {e}", file=sys.stderr)
      sys.exit(e.status)
    except BrokenPipeError:
      # As after `| head -1`. Python would write there once more at its end.
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      print("error: standard output was closed", file=sys.stderr)
      sys.exit(1)
    except KeyboardInterrupt:
      print("interrupted", file=sys.stderr)
      sys.exit(130)

  return wrapped


def _storage_path():
  """Returns the path that the command reads or writes most, for messages."""
  args = flags.FLAGS
  given = [args[n].value for n in ("workdir", "init", "model") if n in args]
  return next(filter(None, given), os.curdir)


def _parse_flags(default_config, argv):
  """Parses the flags; says which known setting an unknown one resembles."""
  known = flatten(default_config())
  try:
    rest = flags.FLAGS(argv)
  except (AttributeError, KeyError) as e:
    raise UserError(_unknown_key(argv, e, known)) from None
  except OSError as e:  # a missing file, noticed at the first setting for it
    reason = str(e).splitlines()[-1].strip()
    raise UserError(
      f"--config can't be read: {reason}; expected a Python file such as "
      "configs/bert_base.py"
    ) from None
  except (flags.Error, TypeError, ValueError) as e:
    raise UserError(
      " ".join(str(e).split()) + _expected_type(e, known)
    ) from None
  if len(rest) > 1:
    raise UserError(f"unexpected argument {rest[1]!r}; flags start with --")
  return rest


def _expected_type(error, known):
  """Returns what a setting named in an error takes, or nothing."""
  key = re.search(r"--?config\.([\w.]+)", str(error))
  default = known.get(key[1]) if key else None
  return "" if default is None else f"; expected {type(default).__name__}"


def _unknown_key(argv, error, known):
  """Returns the message for a config key that does not exist."""
  given = [re.match(r"--?config\.([\w.]+)", a) for a in argv]
  for key in (m.group(1) for m in given if m):
    if key not in known:
      nearest = suggest_key(key, list(known))
      return f"config has no key {key!r}; did you mean --config.{nearest}?"
  return " ".join(str(error).split())
