"""The fake cloud: slices whose machines run their startup script for real.

The `gcloud` on the PATH of the scripts under test hands its command line to the
`FakeCloud` of the test over a socket, and does what that answers.
"""

import contextlib
import os
import pathlib
import re
import shlex
import socket
import socketserver
import subprocess
import sys
import threading
import time

from tests.launch.fake_gcloud import storage, synopses
from tests.launch.fake_gcloud.machine import HERE, Machine

HOSTS = {"v5litepod-16": 4, "v5litepod-8": 1, "v6e-16": 4, "v4-16": 2}
VERSIONS = {
  "v4": "tpu-ubuntu2204-base",
  "v5litepod": "v2-alpha-tpuv5-lite",
  "v6e": "v2-alpha-tpuv6e",
}
PROJECT = "some-project"
REGION = "us-west4"


class Refusal(Exception):
  """What gcloud says on standard error before it exits with a status."""

  def __init__(self, message, status=1):
    super().__init__(message)
    self.status = status


class Slice:
  """A queued resource or an instance group with what it was asked for."""

  def __init__(self, flags, hosts, script):
    self.flags, self.hosts, self.script = flags, hosts, script
    self.state = "WAITING_FOR_RESOURCES"
    self.machines = []
    self.deadlines = []  # (monotonic time, function): limits of Google's
    self.message = ""


class FakeCloud:
  """One project.

  Attributes:
    folder: holds `buckets/NAME/` and `machines/`.
    slices: {(kind, zone, name): Slice}.
    has_capacity: whether what waits in the queue gets machines.
    faults: list of dicts with `match`, a regular expression for the command
      line, `times`, `stderr`, `status` and `seconds` that it hangs.
    rights: False takes the machines' right to delete.
  """

  def __init__(self, folder, environment):
    self.folder = folder
    (folder / "buckets/some-bucket").mkdir(parents=True)
    self.slices, self.templates, self.policies = {}, {}, {}
    self.faults, self.lines = [], []
    self.has_capacity = self.rights = True
    self.failure = ""  # with which Google fails every request
    self.location = REGION.upper()
    self.lock = threading.RLock()
    self.booted = 0
    self._over = threading.Event()
    cloud = self

    class Handler(socketserver.StreamRequestHandler):
      def handle(self):
        with contextlib.suppress(OSError):
          cloud._answer(self.rfile, self.wfile)

    self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    self._server.daemon_threads = True
    self.environment = environment | {
      "FAKE_CLOUD": str(folder),
      "FAKE_CLOUD_PORT": str(self._server.server_address[1]),
      "FAKE_REAL_PYTHON": sys.executable,
      "FAKE_WORKER": "user",
      # Nobody's logins and settings.
      "CLOUDSDK_CONFIG": str(folder / "gcloud"),
    }
    self._reaper = subprocess.Popen(
      [HERE / "reaper", folder], stdin=subprocess.PIPE, env=dict(os.environ)
    )
    threading.Thread(
      target=self._server.serve_forever, args=(0.05,), daemon=True
    ).start()
    threading.Thread(target=self._live, daemon=True).start()

  def close(self):
    """Ends the cloud and every process that knows it."""
    self._over.set()
    self._server.shutdown()
    self._server.server_close()
    self._reaper.communicate()

  def _answer(self, reader, writer):
    words = []
    while not words or len(words) < int(words[0]) + 3:
      words.append(self._read_word(reader))
    _, who, directory, *words = words
    status, out, err = self._run(who, directory, words)
    answer = f"printf %s {shlex.quote(out)}; printf %s {shlex.quote(err)} >&2; "
    writer.write(f"{answer} exit {status}\n".encode())

  def _read_word(self, reader):
    word = b""
    while not word.endswith(b"\0"):
      byte = reader.read(1)
      if not byte:
        raise OSError("the caller has gone")
      word += byte
    return word[:-1].decode()

  def _run(self, who, directory, words):
    with self.lock:
      self.lines.append((who, " ".join(words)))
    try:
      command, arguments, flags = synopses.parse(words)
      flags["cwd"] = directory
      self._fail_if_told(" ".join([who, *words]))
      if command.startswith("storage"):
        out = storage.run(self, directory, command, arguments, flags)
      else:
        with self.lock:
          out = getattr(self, _METHODS[command])(who, arguments, flags)
      return 0, out or "", ""
    except ValueError as e:
      return 2, "", f"ERROR: (gcloud) {e}\n"
    except Refusal as e:
      return e.status, "", f"{e}\n"
    except storage.Missing as e:
      return 1, "", f"ERROR: (gcloud.storage) {e}\n"

  def _fail_if_told(self, line):
    with self.lock:
      for fault in self.faults:
        if fault["times"] and re.search(fault["match"], line):
          fault["times"] -= 1
          break
      else:
        return
    self._over.wait(fault["seconds"])
    if fault["stderr"]:
      raise Refusal(fault["stderr"], fault["status"])

  # What Google does by itself.

  def _live(self):
    while not self._over.wait(0.02):
      with self.lock:
        for key, found in list(self.slices.items()):
          self._move_on(key, found)

  def _move_on(self, key, found):
    for deadline in list(found.deadlines):
      if time.monotonic() > deadline[0]:
        found.deadlines.remove(deadline)
        deadline[1]()
    if found.state == "WAITING_FOR_RESOURCES" and self.failure:
      found.state, found.message = "FAILED", self.failure
    elif found.state == "WAITING_FOR_RESOURCES":
      if self.has_capacity and found.hosts:
        found.state, found.moved = "PROVISIONING", time.monotonic()
    elif (
      found.state == "PROVISIONING" and time.monotonic() > found.moved + 0.15
    ):
      self._start_machines(key, found)

  def _start_machines(self, key, found):
    found.state = "ACTIVE"
    with socket.socket() as s:
      s.bind(("127.0.0.1", 0))
      address = f"127.0.0.1:{s.getsockname()[1]}"
    self.booted += 1
    folder = self.folder / "machines" / key[2] / str(self.booted)
    for number in range(found.hosts):
      home = folder / str(number)
      machine = Machine(self, home, number, address, found.hosts)
      found.machines.append(machine)
      machine.boot(found.script)
    limit = found.flags.get("--max-run-duration")
    if limit:
      at = time.monotonic() + float(limit.rstrip("s"))
      found.deadlines.append((at, lambda: self._take_machines(found)))

  def _take_machines(self, found):
    for machine in found.machines:
      machine.destroy()
    found.machines, found.hosts, found.state = [], 0, "WAITING_FOR_RESOURCES"

  def _find(self, kind, flags, name):
    key = (kind, flags["--zone"], name)
    if key not in self.slices:
      raise self._not_found(kind, "--zone", flags, name)
    return self.slices[key]

  def _not_found(self, kind, where, flags, name):
    place = {"--zone": "zones", "--region": "regions"}[where]
    if kind == "queuedResources":
      return Refusal(
        "ERROR: (gcloud.compute.tpus.queued-resources) NOT_FOUND: Resource "
        f"'projects/{flags['--project']}/locations/{flags['--zone']}/"
        f"queuedResources/{name}' was not found. This command is "
        "authenticated as me@example.com"
      )
    return Refusal(
      "ERROR: (gcloud.compute) Some requests did not succeed:\n - The resource "
      f"'projects/{flags['--project']}/{place}/{flags[where]}/{kind}/{name}' "
      "was not found\n"
    )

  # What a test makes happen.

  def preempt(self):
    """Takes every slice away, as Google does with Spot capacity."""
    with self.lock:
      for found in self.slices.values():
        found.state = "SUSPENDED"
        for machine in found.machines:
          machine.destroy()

  def reboot(self):
    """Restarts every machine, as after maintenance."""
    with self.lock:
      for found in self.slices.values():
        for machine in found.machines:
          machine.power_off()
          machine.boot(found.script)

  # Queued resources.

  def _create_queued(self, who, arguments, flags):
    del who
    kind = flags["--accelerator-type"]
    if flags["--runtime-version"] != VERSIONS.get(kind.split("-")[0]):
      raise Refusal("ERROR: INVALID_ARGUMENT: runtime version and type")
    key = ("queuedResources", flags["--zone"], arguments[0])
    if key in self.slices:
      raise Refusal(f"ERROR: ALREADY_EXISTS: {arguments[0]} already exists")
    found = Slice(flags, HOSTS[kind], _startup_script(flags))
    self.slices[key] = found
    if "--valid-until-duration" in flags:
      seconds = float(flags["--valid-until-duration"].rstrip("s"))

      def lapse():
        if found.state == "WAITING_FOR_RESOURCES":
          found.state, found.message = "FAILED", "The request has expired."

      found.deadlines.append((time.monotonic() + seconds, lapse))

  def _describe_queued(self, who, arguments, flags):
    del who
    found = self._find("queuedResources", flags, arguments[0])
    if flags.get("--format") == "value(state.state)":
      return f"{found.state}\n"
    return (
      f"name: projects/p/locations/z/queuedResources/{arguments[0]}\nstate:\n"
      f"  failedData:\n    error:\n      code: 13\n"
      f"      message: {found.message}\n  state: {found.state}\n"
    )

  def _delete_queued(self, who, arguments, flags):
    self._check_right(who, "tpu.queuedResources.delete")
    found = self._find("queuedResources", flags, arguments[0])
    if found.state == "PROVISIONING":
      raise Refusal("ERROR: FAILED_PRECONDITION: it is PROVISIONING")
    if "--force" not in flags or "--quiet" not in flags:
      raise Refusal("ERROR: FAILED_PRECONDITION: it has nodes; use --force")
    self._remove("queuedResources", flags, arguments[0])

  def _check_right(self, who, right):
    if who != "user" and not self.rights:
      raise Refusal(f"ERROR: PERMISSION_DENIED: Permission '{right}' denied")

  def _remove(self, kind, flags, name):
    found = self.slices.pop((kind, flags["--zone"], name))
    for machine in found.machines:
      machine.destroy()

  # Instance groups.

  def _create_policy(self, who, arguments, flags):
    del who
    if flags["--type"] != "HIGH_THROUGHPUT":
      raise Refusal("ERROR: INVALID_ARGUMENT: --type")
    self._add(self.policies, arguments[0], flags)

  def _create_template(self, who, arguments, flags):
    del who
    if flags["--image-project"] != "ubuntu-os-accelerator-images":
      raise Refusal("ERROR: INVALID_ARGUMENT: image")
    flags["script"] = _startup_script(flags)
    self._add(self.templates, arguments[0], flags)

  def _add(self, things, name, flags):
    if name in things:
      raise Refusal(f"ERROR: The resource '{name}' already exists")
    things[name] = flags

  def _create_group(self, who, arguments, flags):
    del who
    if flags["--target-size-policy-mode"] != "bulk" or flags["--size"] != "0":
      raise Refusal("ERROR: Invalid value for field targetSizePolicy")
    for flag in ("--workload-policy", "--template"):
      if not flags[flag].startswith("https://www.googleapis.com/compute/v1/"):
        raise Refusal(f"ERROR: Invalid value for {flag}: not a full URL")
    template = self.templates[flags["--template"].rsplit("/", 1)[1]]
    assert self.policies[flags["--workload-policy"].rsplit("/", 1)[1]]
    key = ("instanceGroupManagers", flags["--zone"], arguments[0])
    self.slices[key] = Slice(template, 0, template["script"])

  def _resize_group(self, who, arguments, flags):
    del who
    found = self._find("instanceGroupManagers", flags, arguments[0])
    found.hosts = int(flags["--size"])

  def _list_instances(self, who, arguments, flags):
    del who
    if flags.get("--format") != "value(instance.basename(),instanceStatus)":
      raise Refusal("ERROR: this fake does not know that --format")
    found = self._find("instanceGroupManagers", flags, arguments[0])
    words = {"WAITING_FOR_RESOURCES": "", "PROVISIONING": "STAGING"}
    words |= {"ACTIVE": "RUNNING", "SUSPENDED": "TERMINATED", "FAILED": ""}
    name, word = arguments[0], words[found.state]
    return "".join(f"{name}-{h:04x}\t{word}\n" for h in range(found.hosts))

  def _list_errors(self, who, arguments, flags):
    del who
    found = self._find("instanceGroupManagers", flags, arguments[0])
    return f"{found.message}\n"

  def _delete_group(self, who, arguments, flags):
    self._check_right(who, "compute.instanceGroupManagers.delete")
    if "--quiet" not in flags:
      raise Refusal("ERROR: aborted by user")
    self._find("instanceGroupManagers", flags, arguments[0])
    self._remove("instanceGroupManagers", flags, arguments[0])

  def _delete_template(self, who, arguments, flags):
    del who
    if self.templates.pop(arguments[0], None) is None:
      kind = "instanceTemplates"
      raise self._not_found(kind, "--region", flags, arguments[0])

  def _delete_policy(self, who, arguments, flags):
    del who
    if self.policies.pop(arguments[0], None) is None:
      kind = "resourcePolicies"
      raise self._not_found(kind, "--region", flags, arguments[0])

  def _describe_account(self, who, arguments, flags):
    del who, flags
    if "nobody" in arguments[0]:
      raise Refusal(f"ERROR: NOT_FOUND: Unknown service account {arguments[0]}")
    return f"email: {arguments[0]}\n"


def _startup_script(flags):
  """Returns the startup script that a request brings, or nothing."""
  name, _, path = flags.get("--metadata-from-file", "").partition("=")
  return pathlib.Path(flags["cwd"], path).read_text() if name else ""


_METHODS = {
  "compute tpus queued-resources create": "_create_queued",
  "compute tpus queued-resources describe": "_describe_queued",
  "compute tpus queued-resources delete": "_delete_queued",
  "compute resource-policies create workload-policy": "_create_policy",
  "compute resource-policies delete": "_delete_policy",
  "compute instance-templates create": "_create_template",
  "compute instance-templates delete": "_delete_template",
  "compute instance-groups managed create": "_create_group",
  "compute instance-groups managed resize": "_resize_group",
  "compute instance-groups managed list-instances": "_list_instances",
  "compute instance-groups managed list-errors": "_list_errors",
  "compute instance-groups managed delete": "_delete_group",
  "iam service-accounts describe": "_describe_account",
}
