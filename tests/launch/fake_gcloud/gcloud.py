"""The fake `gcloud`: slices are folders, their workers run real processes.

$FAKE_CLOUD holds:
  state.json    slices, groups, templates, policies
  calls.jsonl   every command line
  faults.json   what shall go wrong: [{"match", "times", "stderr", "status"}]
  workers/SLICE/N/   the home folder of a worker
  buckets/NAME/      what gs://NAME holds
"""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
if __name__ == "__main__":
  sys.path.insert(0, str(HERE.parents[2]))

from tests.launch.fake_gcloud import synopses  # noqa: E402

CLOUD = pathlib.Path(os.environ.get("FAKE_CLOUD", "/nonexistent"))
STATES = ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
HOSTS = {"v5litepod-16": 4, "v4-8": 1, "v6e-16": 4, "v5litepod-8": 1}


class Refusal(Exception):
  """What gcloud says on standard error before it exits with a status."""

  def __init__(self, message, status=1):
    super().__init__(message)
    self.status = status


@contextlib.contextmanager
def locked_state():
  """Yields the state; what is changed in it is kept."""
  with open(CLOUD / "state.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    path = CLOUD / "state.json"
    state = json.loads(path.read_text()) if path.exists() else {}
    for kind in ("slices", "groups", "templates", "policies"):
      state.setdefault(kind, {})
    yield state
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(state, indent=1))
    temporary.replace(path)


def run(words):
  """Runs one command line; returns its exit status."""
  with open(CLOUD / "calls.jsonl", "a") as f:
    f.write(json.dumps(words) + "\n")
  command, arguments, flags = synopses.parse(words)
  _fail_if_told(" ".join(words))
  return COMMANDS[command](arguments, flags) or 0


def _fail_if_told(line):
  path = CLOUD / "faults.json"
  with locked_state():  # for the lock
    faults = json.loads(path.read_text()) if path.exists() else []
    for fault in faults:
      if fault["times"] and re.search(fault["match"], line):
        fault["times"] -= 1
        path.write_text(json.dumps(faults))
        raise Refusal(fault["stderr"], fault.get("status", 1))


def _create_queued(arguments, flags):
  kind = flags["--accelerator-type"]
  versions = {
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v6e": "v2-alpha-tpuv6e",
    "v5p": "v2-alpha-tpuv5",
    "v4": "tpu-ubuntu2204-base",
  }
  if flags["--runtime-version"] != versions.get(kind.split("-")[0]):
    raise Refusal("ERROR: INVALID_ARGUMENT: runtime version and type")
  with locked_state() as state:
    (name,) = arguments
    if name in state["slices"]:
      raise Refusal(f"ERROR: ALREADY_EXISTS: {name} already exists")
    path = CLOUD / "states.json"
    states = json.loads(path.read_text()) if path.exists() else list(STATES)
    state["slices"][name] = {"states": states, "hosts": HOSTS[kind]}
    _make_workers(name, HOSTS[kind])


def _make_workers(name, hosts):
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  for index in range(hosts):
    home = CLOUD / "workers" / name / str(index)
    (home / "tmp").mkdir(parents=True)
    (home / "address").write_text(f"127.0.0.1:{port} {hosts} {index}")


def _describe_queued(arguments, flags):
  if flags.get("--format") != "value(state.state)":
    raise Refusal("ERROR: this fake knows --format=value(state.state) only")
  with locked_state() as state:
    states = _find(state["slices"], arguments[0])["states"]
    print(states[0])
    if len(states) > 1:
      del states[0]


def _find(things, name):
  if name not in things:
    raise Refusal(f"ERROR: NOT_FOUND: Resource '{name}' was not found")
  return things[name]


def _delete_queued(arguments, flags):
  with locked_state() as state:
    (name,) = arguments
    found = _find(state["slices"], name)["states"][0]
    if found == "PROVISIONING":
      raise Refusal("ERROR: FAILED_PRECONDITION: it is PROVISIONING")
    if "--force" not in flags or "--quiet" not in flags:
      raise Refusal("ERROR: FAILED_PRECONDITION: it has nodes; use --force")
    _end_workers(name)
    del state["slices"][name]


def _end_workers(name):
  """Ends all processes of a slice's workers and takes their disks away."""
  home = str(CLOUD / "workers" / name)
  for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
    with contextlib.suppress(OSError):
      variables = path.read_bytes().decode(errors="replace").split("\0")
      pid = int(path.parent.name)
      if pid != os.getpid() and any(
        v.startswith(f"FAKE_WORKER_HOME={home}/") for v in variables
      ):
        os.kill(pid, signal.SIGKILL)
  for _ in range(50):
    with contextlib.suppress(OSError):
      shutil.rmtree(home)
    if not os.path.exists(home):
      return
    time.sleep(0.02)


def preempt(name):
  """Takes a slice away, as Google does with a Spot slice."""
  with locked_state() as state:
    if name in state["slices"]:
      state["slices"][name]["states"] = ["SUSPENDED"]
    else:
      for machine in state["groups"][name]["machines"]:
        machine[1] = "TERMINATED"
    _end_workers(name)


def _ssh_tpu(arguments, flags):
  """Runs a command on one worker of a queued resource."""
  with locked_state() as state:
    states = _find(state["slices"], arguments[0])["states"]
  if states[0] != "ACTIVE":
    raise Refusal("ERROR: the TPU is not ready", 255)
  homes = _homes(arguments[0], flags)
  return max(_on_worker(home, flags["--command"]) for home in homes)


def _homes(name, flags):
  root = CLOUD / "workers" / name
  worker = flags.get("--worker", "0")
  if worker == "all":
    return sorted(root.iterdir())
  return [root / worker]


def _on_worker(home, command):
  """Runs a command as sshd would; returns its exit status."""
  if not home.is_dir():
    raise Refusal("ssh: connect to host: Connection timed out", 255)
  address, count, index = (home / "address").read_text().split()
  environment = {
    "HOME": str(home),
    "TMPDIR": str(home / "tmp"),
    "PATH": f"{HERE / 'worker_bin'}:{HERE / 'bin'}:/usr/bin:/bin",
    "FAKE_WORKER_HOME": f"{home}/",
    "FAKE_CLOUD": str(CLOUD),
    "FAKE_PYTHON": os.environ["FAKE_PYTHON"],
    "FAKE_GCLOUD_PYTHON": sys.executable,
    "FAKE_WORKER": index,
    # How the machines of a slice find each other, where no TPU says so.
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "4",
    "JAX_COORDINATOR_ADDRESS": address,
    "JAX_NUM_PROCESSES": count,
    "JAX_PROCESS_ID": index,
  }
  for name in ("JAX_COMPILATION_CACHE_DIR", "PYTHONWARNINGS"):
    if name in os.environ:
      environment[name] = os.environ[name]
  done = subprocess.run(
    ["bash", "-c", command],
    cwd=home,
    env=environment,
    stdin=subprocess.DEVNULL,
    check=False,
  )
  return done.returncode


def _scp_tpu(arguments, flags):
  source, target = arguments
  name, _, path = target.partition(":")
  if flags.get("--worker") != "all":
    raise Refusal("ERROR: copied to one worker only")
  with locked_state() as state:
    _find(state["slices"], name)
  for home in _homes(name, flags):
    shutil.copy(source, home / path)


def _create_policy(arguments, flags):
  if flags["--type"] != "HIGH_THROUGHPUT":
    raise Refusal("ERROR: INVALID_ARGUMENT: --type")
  _add("policies", arguments[0], {"topology": flags["--accelerator-topology"]})


def _create_template(arguments, flags):
  if flags["--image-project"] != "ubuntu-os-accelerator-images":
    raise Refusal("ERROR: INVALID_ARGUMENT: image")
  _add("templates", arguments[0], {"machine": flags["--machine-type"]})


def _add(kind, name, thing):
  with locked_state() as state:
    if name in state[kind]:
      raise Refusal(f"ERROR: The resource '{name}' already exists")
    state[kind][name] = thing


def _create_group(arguments, flags):
  if flags["--target-size-policy-mode"] != "bulk" or flags["--size"] != "0":
    raise Refusal("ERROR: Invalid value for field targetSizePolicy")
  for flag in ("--workload-policy", "--template"):
    if not flags[flag].startswith("https://www.googleapis.com/compute/v1/"):
      raise Refusal(f"ERROR: Invalid value for {flag}: not a full URL")
  with locked_state() as state:
    _find(state["templates"], flags["--template"].rsplit("/", 1)[1])
    _find(state["policies"], flags["--workload-policy"].rsplit("/", 1)[1])
  _add("groups", arguments[0], {"machines": []})


def _resize_group(arguments, flags):
  with locked_state() as state:
    (name,) = arguments
    group = _find(state["groups"], name)
    if not group["machines"]:
      hosts = int(flags["--size"])
      group["machines"] = [[f"{name}-{h:04x}", ""] for h in range(hosts)]
      _make_workers(name, hosts)


def _list_instances(arguments, flags):
  if flags.get("--format") != "value(instance.basename(),instanceStatus)":
    raise Refusal("ERROR: this fake does not know that --format")
  following = {"": "PROVISIONING", "PROVISIONING": "STAGING"}
  following["STAGING"] = "RUNNING"
  with locked_state() as state:
    for machine in _find(state["groups"], arguments[0])["machines"]:
      print("\t".join(machine))
      machine[1] = following.get(machine[1], machine[1])


def _delete_group(arguments, flags):
  if "--quiet" not in flags:
    raise Refusal("ERROR: aborted by user")
  with locked_state() as state:
    _find(state["groups"], arguments[0])
    _end_workers(arguments[0])
    del state["groups"][arguments[0]]


def _remover(kind):
  def remove(arguments, flags):
    del flags
    with locked_state() as state:
      _find(state[kind], arguments[0])
      del state[kind][arguments[0]]

  return remove


def _machine_home(machine):
  name, _, number = machine.rpartition("-")
  with locked_state() as state:
    machines = dict(_find(state["groups"], name)["machines"])
  if machines.get(machine) != "RUNNING":
    raise Refusal("ssh: connect to host: Connection refused", 255)
  return CLOUD / "workers" / name / str(int(number, 16))


def _ssh_machine(arguments, flags):
  return _on_worker(_machine_home(arguments[0]), flags["--command"])


def _scp_machine(arguments, flags):
  del flags
  machine, _, path = arguments[1].partition(":")
  shutil.copy(arguments[0], _machine_home(machine) / path)


def local(url):
  """Returns the path behind a gs:// URL; others stay."""
  if url.startswith("gs://"):
    return CLOUD / "buckets" / url.removeprefix("gs://")
  return pathlib.Path(url)


def _storage_ls(arguments, flags):
  del flags
  (url,) = arguments
  path = local(url)
  if path.is_file():
    print(url)
  elif path.is_dir() and any(path.iterdir()):
    for child in sorted(path.iterdir()):
      slash = "/" if child.is_dir() else ""
      print(f"{url.rstrip('/')}/{child.name}{slash}")
  else:
    raise Refusal("ERROR: One or more URLs matched no objects.")


def _storage_cp(arguments, flags):
  source, target = map(local, arguments)
  if not source.exists():
    raise Refusal("ERROR: The following URLs matched no objects or files")
  if arguments[1].endswith("/"):
    if not (arguments[1].startswith("gs://") or target.is_dir()):
      raise Refusal("ERROR: Destination URL must name an existing directory")
    target = target / source.name
  target.parent.mkdir(parents=True, exist_ok=True)
  if source.is_dir():
    if "--recursive" not in flags:
      raise Refusal("ERROR: Omitting directory; use --recursive")
    shutil.copytree(source, target, dirs_exist_ok=True)
  else:
    shutil.copy(source, target)


def _storage_rsync(arguments, flags):
  source, target = map(local, arguments)
  if "--recursive" not in flags or not source.is_dir():
    raise Refusal("ERROR: rsync needs folders and --recursive")
  shutil.copytree(source, target, dirs_exist_ok=True)


COMMANDS = {
  "compute tpus queued-resources create": _create_queued,
  "compute tpus queued-resources describe": _describe_queued,
  "compute tpus queued-resources delete": _delete_queued,
  "compute tpus queued-resources ssh": _ssh_tpu,
  "compute tpus queued-resources scp": _scp_tpu,
  "compute tpus tpu-vm ssh": _ssh_tpu,
  "compute tpus tpu-vm scp": _scp_tpu,
  "compute resource-policies create workload-policy": _create_policy,
  "compute resource-policies delete": _remover("policies"),
  "compute instance-templates create": _create_template,
  "compute instance-templates delete": _remover("templates"),
  "compute instance-groups managed create": _create_group,
  "compute instance-groups managed resize": _resize_group,
  "compute instance-groups managed list-instances": _list_instances,
  "compute instance-groups managed delete": _delete_group,
  "compute ssh": _ssh_machine,
  "compute scp": _scp_machine,
  "storage ls": _storage_ls,
  "storage cp": _storage_cp,
  "storage rsync": _storage_rsync,
}


if __name__ == "__main__":
  try:
    sys.exit(run(sys.argv[1:]))
  except ValueError as e:
    print(f"ERROR: (gcloud) {e}", file=sys.stderr)
    sys.exit(2)
  except Refusal as e:
    print(e, file=sys.stderr)
    sys.exit(e.status)
