"""`gcloud storage` of the fake cloud: buckets are folders."""

import contextlib
import pathlib
import shutil


class Missing(Exception):
  """What gcloud says where a URL matches nothing."""


def run(cloud, directory, command, arguments, flags):
  """Runs one command.

  Args:
    cloud: `FakeCloud`.
    directory: where the caller is.
    command: such as "storage ls".
    arguments: list of str.
    flags: {flag: value}.

  Returns:
    what is printed, str.

  Raises:
    Missing: a URL or path names nothing.
  """

  def local(url):
    if url.startswith("gs://"):
      return cloud.folder / "buckets" / url.removeprefix("gs://")
    return pathlib.Path(directory, url)

  if command == "storage buckets describe":
    if not local(arguments[0]).is_dir():
      raise Missing(f"{arguments[0]} not found: 404.")
    return f"{cloud.location}\n"
  if command == "storage ls":
    return _ls(arguments[0], local)
  if command == "storage cat":
    found = _match(arguments[0], local)
    texts = [path.read_text(errors="replace") for path in found]
    return "".join(text[int(flags.get("--range", 0)) :] for text in texts)
  if command == "storage rm":
    local(arguments[0]).unlink()
    return ""
  source, target = map(local, arguments)
  if not source.exists():
    raise Missing("The following URLs matched no objects or files:\n")
  if command == "storage rsync":
    if not source.is_dir() or "--recursive" not in flags:
      raise Missing("rsync needs a folder and --recursive")
    shutil.copytree(source, target, dirs_exist_ok=True)
    return ""
  if arguments[1].endswith("/") or arguments[1] == ".":
    target = target / source.name
  if source.is_dir() and "--recursive" not in flags:
    raise Missing("Omitting directory; use --recursive")
  target.parent.mkdir(parents=True, exist_ok=True)
  if source.is_dir():
    shutil.copytree(source, target, dirs_exist_ok=True)
  else:
    _copy(source, target)
  return ""


def _copy(source, target):
  """Objects are whole or not there."""
  temporary = target.with_name(f".{target.name}.{id(object())}")
  shutil.copyfile(source, temporary)
  with contextlib.suppress(FileNotFoundError):
    temporary.replace(target)


def _match(url, local):
  found = []
  if url.startswith("gs://"):
    bucket, _, pattern = url.removeprefix("gs://").partition("/")
    root = local(f"gs://{bucket}")
    found = sorted(p for p in root.glob(pattern) if p.is_file())
  if not found:
    raise Missing(f"The following URLs matched no objects or files:\n{url}")
  return found


def _ls(url, local):
  bucket = url.removeprefix("gs://").partition("/")[0]
  root = local(f"gs://{bucket}")
  if url.endswith("/"):
    found = sorted(local(url).glob("*"))
  else:
    pattern = url.removeprefix(f"gs://{bucket}/")
    found = sorted(root.glob(pattern))
  if not found:
    raise Missing("One or more URLs matched no objects.")
  return "".join(
    f"gs://{bucket}/{p.relative_to(root)}{'/' if p.is_dir() else ''}\n"
    for p in found
    if not p.name.startswith(".")
  )
