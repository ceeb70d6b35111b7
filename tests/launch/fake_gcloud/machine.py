"""A machine of a slice: a folder, and the processes that run in it."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess

HERE = pathlib.Path(__file__).resolve().parent


class Machine:
  """Runs the startup script as root of its folder."""

  def __init__(self, cloud, home, number, address, hosts):
    self.home, self.cloud = home, cloud
    (home / "tmp").mkdir(parents=True)
    self.environment = {
      "HOME": str(home),
      "PATH": f"{HERE / 'worker_bin'}:{HERE / 'bin'}:/usr/bin:/bin",
      "FAKE_WORKER_HOME": f"{home}/",
      "FAKE_WORKER": str(number),
      # How the machines of a slice find each other, where no TPU says so.
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": "4",
      "JAX_COORDINATOR_ADDRESS": address,
      "JAX_NUM_PROCESSES": str(hosts),
      "JAX_PROCESS_ID": str(number),
    }

  def boot(self, script):
    """Runs the startup script, as Google does at every boot."""
    for path in ("/var/lib/bert", "/tmp/libtpu_lockfile"):
      script = script.replace(path, f"{self.home}{path}")
    (self.home / "tmp/startup").write_text(script)
    (self.home / "var/lib").mkdir(parents=True, exist_ok=True)
    subprocess.run(
      [
        "bash",
        "-c",
        'setsid bash "$PWD/tmp/startup" </dev/null >>console 2>&1 &',
      ],
      cwd=self.home,
      env=self.cloud.environment | self.environment,
      check=True,
    )

  def power_off(self):
    """Ends everything that runs; the disk stays."""
    wanted = f"FAKE_WORKER_HOME={self.home}/".encode()
    for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
      with contextlib.suppress(OSError):
        if wanted in path.read_bytes().split(b"\0"):
          os.kill(int(path.parent.name), signal.SIGKILL)
    shutil.rmtree(self.home / ".units", ignore_errors=True)

  def destroy(self):
    """Ends everything and takes the disk away."""
    for _ in range(3):  # a process may be starting another one
      self.power_off()
      shutil.rmtree(self.home, ignore_errors=True)
