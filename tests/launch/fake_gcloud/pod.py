"""A checkout, its settings and a fake cloud, for the tests of launch/pod.sh."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

from tests.launch.fake_gcloud import gcloud

ROOT = pathlib.Path(__file__).parents[3]
HERE = pathlib.Path(__file__).parent
PLAN = {"fits": True, "hours": 2.0, "money": 38.4, "money_range": [30.7, 53.8]}
SETTINGS = {
  "PROJECT": "some-project",
  "ZONE": "us-west4-a",
  "NAME": "my-bert",
  "ACCELERATOR_TYPE": "v5litepod-16",
  "SPOT": "yes",
  "CONFIG": "configs/quickstart.py",
  "PRICE_PER_CHIP_HOUR": "1.2",
  "BUDGET": "100",
  "POLL_SECONDS": "0.1",
}


class Pod:
  """One user's checkout and cloud; `pod(COMMAND)` runs launch/pod.sh."""

  def __init__(self, folder, python=HERE / "stub_python", **settings):
    self.cloud = folder / "cloud"
    self.checkout = folder / "checkout"
    self.bucket = folder / "bucket"
    (self.cloud / "buckets").mkdir(parents=True)
    self.bucket.mkdir()
    for name in ("bert_jax", "configs", "launch"):
      shutil.copytree(
        ROOT / name,
        self.checkout / name,
        ignore=shutil.ignore_patterns("__pycache__", "settings.sh"),
      )
    for name in ("setup.py", "README.md"):
      shutil.copy(ROOT / name, self.checkout / name)
    self.settings = SETTINGS | {"BUCKET": str(self.bucket)} | settings
    self.write_settings()
    (self.cloud / "plan.json").write_text(json.dumps(PLAN))
    self.name = self.settings["NAME"]
    self.workdir = self._local(self.settings["BUCKET"]) / self.name
    self.state = self.checkout / "runs/pod" / self.name
    self.environment = os.environ | {
      "PATH": f"{HERE / 'bin'}:{os.environ['PATH']}",
      "PYTHON": str(python),
      "FAKE_CLOUD": str(self.cloud),
      "FAKE_PYTHON": str(python),
      "FAKE_GCLOUD_PYTHON": sys.executable,
      "FAKE_WORKER": "none",
    }
    gcloud.CLOUD = self.cloud

  def _local(self, bucket):
    return self.cloud / "buckets" / bucket.removeprefix("gs://")

  def write_settings(self, **changes):
    """Writes the settings file; values starting with ( are bash arrays."""
    self.settings |= changes
    lines = [
      f"{k}={v}" if v.startswith("(") else f"{k}='{v}'"
      for k, v in self.settings.items()
    ]
    path = self.checkout / "launch/settings.sh"
    path.write_text("\n".join(lines) + "\n")

  def __call__(self, *words, timeout=120):
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
    with open(self.cloud / "output", "w") as f:
      return subprocess.Popen(
        ["bash", "launch/pod.sh", *words],
        cwd=self.checkout,
        env=self.environment,
        stdin=subprocess.DEVNULL,
        stdout=f,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )

  @property
  def output(self):
    """What the started command has said so far."""
    path = self.cloud / "output"
    return path.read_text() if path.exists() else ""

  def fault(self, match, times, stderr, status=1):
    """Has the next `times` gcloud lines that match fail."""
    path = self.cloud / "faults.json"
    faults = json.loads(path.read_text()) if path.exists() else []
    faults.append(
      {"match": match, "times": times, "stderr": stderr, "status": status}
    )
    path.write_text(json.dumps(faults))

  def calls(self, match=""):
    """Returns the gcloud lines so far that contain `match`."""
    path = self.cloud / "calls.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    calls = [" ".join(json.loads(line)) for line in lines]
    return [call for call in calls if match in call]

  def costing(self):
    """Returns what is there that costs money by the hour."""
    with gcloud.locked_state() as state:
      return [*state["slices"], *state["groups"]]

  def steps(self):
    """Returns the steps of the checkpoints in the bucket."""
    folder = self.workdir / "checkpoints"
    names = [p.name for p in folder.glob("*")]
    return sorted(int(name) for name in names if name.isdigit())

  def wait_for(self, condition, seconds=60):
    """Waits until a function of nothing says yes."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
      if condition():
        return
      time.sleep(0.02)
    raise AssertionError(f"never came: {self.output[-3000:]}")

  def end(self):
    """Ends what still runs on the workers."""
    with gcloud.locked_state() as state:
      names = [*state["slices"], *state["groups"]]
    for name in names:
      with contextlib.suppress(OSError):
        gcloud._end_workers(name)
