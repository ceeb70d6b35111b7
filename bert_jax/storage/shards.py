"""Many input files shared among processes, each read once over all restarts.

Each file that a pattern names is a shard, the unit of work: the N-th file's
results are in a file of its own. So the processes need nothing of one another,
and a start after an interruption does what is not there yet.

    --input='docs/part-*.jsonl' --output=labels.jsonl

    labels-00000-of-00128.jsonl   results of the first file, whole
    labels.jsonl.job.json         the inputs, model and settings of all of them
"""

import json
import os

from bert_jax.config import flatten
from bert_jax.distributed import consistency
from bert_jax.errors import UserError
from bert_jax.storage import files, paths


def divide(hosts, source, output, settings):
  """Divides the input files of a command among its processes.

  A file that is named without a wildcard is no shard: process 0 reads it, and
  `output` is replaced.

  Args:
    hosts: `Hosts`, all of which call this.
    source: path, or pattern of paths, of the input.
    output: path of the output.
    settings: dict, JSON-able: what the results depend on besides the input.

  Returns:
    list of (input, output), str, that this process has to read and write.

  Raises:
    UserError: no file matches, the processes differ in code or settings, or
      the shards that are there are of another job.
  """
  consistency.compare(hosts, consistency.software(settings))
  found = hosts.on_first(lambda: _find(source))
  if found == [source]:
    _tell_idle(hosts, 1)
    return [(source, output)] if hosts.is_first else []
  shards = [
    (path, _shard_name(output, number, len(found)))
    for number, path in enumerate(found)
  ]
  hosts.on_first(lambda: _check_job(found, output, settings))
  done = hosts.on_first(lambda: _done(shards))
  left = [shard for shard in shards if shard[1] not in done]
  if done:
    print(f"input: {len(done):,} of {len(shards):,} files are done already")
  _tell_idle(hosts, len(left))
  return left[hosts.index :: len(hosts.names)]


def _find(source):
  is_pattern = any(character in source for character in "*?[")
  if source.startswith("tfds:") or not is_pattern:
    return [source]  # its reader says what is wrong with it
  found = paths.find(source)
  if not found:
    raise UserError(
      f"--input={source} matches no file; expected a path, or a pattern of "
      "several files"
    )
  return found


def _shard_name(output, number, count):
  root, ending = os.path.splitext(output)
  return f"{root}-{number:05}-of-{count:05}{ending}"


def _done(shards):
  """Returns which outputs are there; each appeared when it was whole."""
  folder = paths.as_path(shards[0][1]).parent
  names = {p.name for p in folder.iterdir()} if folder.exists() else ()
  return [path for _, path in shards if os.path.basename(path) in names]


def _check_job(found, output, settings):
  """Notes what the shards are of; raises UserError if it is something else."""
  path = paths.as_path(f"{output}.job.json")
  job = {
    "input": {p: paths.as_path(p).stat().length for p in found},
    "settings": settings,
  }
  empty = [p for p, length in job["input"].items() if not length]
  if empty:
    raise UserError(f"{empty[0]} is empty; expected rows in every input file")
  job = json.loads(json.dumps(job))  # as it will be read
  if not path.exists():
    paths.write_file(path, json.dumps(job, indent=2) + "\n")
    return
  old = flatten(files.load_json(path, "delete it and its shards"))
  new = flatten(job)
  for key in dict.fromkeys((*old, *new)):
    if old.get(key) != new.get(key):
      raise UserError(
        f"{path} is of other shards: {key} was {old.get(key)!r}, now "
        f"{new.get(key)!r}; expected the same (use another --output, or delete "
        "this file if the shards that are there are right all the same)"
      )


def _tell_idle(hosts, num_files):
  idle = len(hosts.names) - num_files
  if num_files and idle > 0:
    print(
      f"input: {num_files} file{'s' if num_files > 1 else ''} for "
      f"{len(hosts.names)} processes; {idle} have nothing to do (split the "
      "input, for each reads whole files)"
    )
