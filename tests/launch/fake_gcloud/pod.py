"""A checkout, its settings and a fake cloud, for the tests of launch/pod.sh."""

import json
import os
import pathlib
import shutil
import subprocess
import time

from tests.launch.fake_gcloud.cloud import FakeCloud

ROOT = pathlib.Path(__file__).parents[3]
HERE = pathlib.Path(__file__).parent
PLAN = {"fits": True, "hours": 2.0, "money": 38.4, "money_range": [30.7, 53.8]}
SETTINGS = {
  "PROJECT": "some-project",
  "ZONE": "us-west4-a",
  "NAME": "my-bert",
  "ACCELERATOR_TYPE": "v5litepod-8",
  "BUCKET": "gs://some-bucket",
  "CONFIG": "configs/quickstart.py",
  "PRICE_PER_CHIP_HOUR": "2.4",  # 8 chips cost as much as the 16 of PLAN
  "BUDGET": "100",
  "POLL_SECONDS": "0.1",
}


class Pod:
  """One user's checkout and cloud; `pod(COMMAND)` runs launch/pod.sh."""

  def __init__(self, folder, python=HERE / "stub_python", **settings):
    self._started = []
    self.checkout = folder / "checkout"
    for name in ("bert_jax", "configs", "launch"):
      shutil.copytree(
        ROOT / name,
        self.checkout / name,
        ignore=shutil.ignore_patterns("__pycache__", "settings.sh"),
      )
    for name in ("setup.py", "README.md"):
      shutil.copy(ROOT / name, self.checkout / name)
    environment = os.environ | {
      "PATH": f"{HERE / 'bin'}:{os.environ['PATH']}",
      "PYTHON": str(python),
      "FAKE_PYTHON": str(python),
    }
    self.cloud = FakeCloud(folder / "cloud", environment)
    self.environment = self.cloud.environment
    self.settings = SETTINGS | settings
    self.write_settings()
    self.write_plan(PLAN)
    self.name = self.settings["NAME"]
    self.workdir = self.cloud.folder / "buckets/some-bucket" / self.name
    self.state = self.checkout / "runs/pod" / self.name

  def write_plan(self, plan):
    """Has `bert_jax.plan` print this."""
    (self.cloud.folder / "plan.json").write_text(json.dumps(plan))

  def write_settings(self, **changes):
    """Writes the settings file; values starting with ( are bash arrays."""
    self.settings |= changes
    lines = [
      f"{k}={v}" if v.startswith("(") else f"{k}='{v}'"
      for k, v in self.settings.items()
    ]
    path = self.checkout / "launch/settings.sh"
    path.write_text("\n".join(lines) + "\n")

  def __call__(self, *words, timeout=60):
    """Runs a command to its end; standard error is in `stdout` too."""
    return subprocess.run(
      ["bash", "launch/pod.sh", *words],
      cwd=self.checkout,
      env=self.environment,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      timeout=timeout,
      check=False,
    )

  def start(self, *words):
    """Starts a command; `output` has what it said."""
    with open(self.cloud.folder / "output", "w") as f:
      process = subprocess.Popen(
        ["bash", "launch/pod.sh", *words],
        cwd=self.checkout,
        env=self.environment,
        stdin=subprocess.DEVNULL,
        stdout=f,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )
    self._started.append(process)
    return process

  def close(self):
    """Ends the cloud, and with it what was started here."""
    self.cloud.close()
    for process in self._started:
      process.wait()

  @property
  def output(self):
    """What the started command has said so far."""
    path = self.cloud.folder / "output"
    return path.read_text() if path.exists() else ""

  def fault(self, match, times=1, stderr="", status=1, seconds=0):
    """Has the next `times` gcloud lines that match fail or hang."""
    self.cloud.faults.append(
      {
        "match": match,
        "times": times,
        "stderr": stderr,
        "status": status,
        "seconds": seconds,
      }
    )

  def calls(self, match="", who="user"):
    """Returns the gcloud lines so far of the user that contain `match`."""
    return [line for w, line in self.cloud.lines if w == who and match in line]

  def costing(self):
    """Returns the slices that are there or asked for."""
    return sorted(name for _, _, name in self.cloud.slices)

  def steps(self):
    """Returns the steps of the whole checkpoints in the bucket."""
    found = self.workdir.glob("checkpoints/*/commit_success.txt")
    return sorted(int(path.parent.name) for path in found)

  def wait_for(self, condition, seconds=30):
    """Waits until a function of nothing says yes."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
      if condition():
        return
      time.sleep(0.02)
    raise AssertionError(f"never came: {self.output[-3000:]}")
