"""launch/sky.yaml by SkyPilot's own reader, and the YAML of docs/hosts.md."""

import importlib.util
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
READ = """
import json, sys
import sky
task = sky.Task.from_yaml(sys.argv[1])
task.validate(skip_file_mounts=True)
(resources,) = task.resources
print(json.dumps({
  "accelerators": resources.accelerators,
  "spot": resources.use_spot,
  "recovery": resources.job_recovery,
  "envs": task.envs,
  "setup": task.setup,
  "run": task.run,
}))
"""


def _find_interpreter():
  """Returns a Python that has SkyPilot, or None.

  SkyPilot wants an older click than huggingface_hub does, so it may have an
  environment of its own: $SKY_PYTHON, or the one of the `sky` on the PATH.
  """
  if importlib.util.find_spec("sky"):
    return sys.executable
  if os.environ.get("SKY_PYTHON"):
    return os.environ["SKY_PYTHON"]
  command = shutil.which("sky")
  if not command:
    return None
  python = pathlib.Path(command).resolve().with_name("python")
  return str(python) if python.exists() else None


INTERPRETER = _find_interpreter()


@pytest.mark.skipif(
  INTERPRETER is None,
  reason="SkyPilot is not here: its click is older than huggingface_hub's, so "
  "it needs a venv of its own (pip install skypilot; SKY_PYTHON=that python)",
)
def test_skypilot_reads_the_task_as_a_recovering_job_on_spot(tmp_path):
  done = subprocess.run(
    [INTERPRETER, "-c", READ, "launch/sky.yaml"],
    cwd=ROOT,
    env=os.environ
    | {"HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  task = json.loads(done.stdout.splitlines()[-1])
  assert task["accelerators"] == {"tpu-v6e-16": 1}
  assert task["spot"] is True
  assert task["recovery"]["max_restarts_on_errors"] == 2
  assert task["envs"]["WORKDIR"].startswith("gs://")
  assert "bert_jax.train" in task["run"]
  for script in (task["setup"], task["run"]):
    subprocess.run(["bash", "-n", "-c", script], check=True)


def test_the_task_installs_as_the_machines_of_a_slice_do():
  """The pinned installer, and a config that is there."""
  text = (ROOT / "launch/sky.yaml").read_text()
  worker = (ROOT / "launch/worker.sh").read_text()
  pinned = re.findall(r"uv==[\d.]+", text + worker)
  assert len(pinned) == 2 and len(set(pinned)) == 1
  assert (ROOT / re.search(r"CONFIG: (\S+)", text)[1]).is_file()


def test_the_jobset_of_the_docs_has_a_pod_for_each_host_of_its_topology():
  text = (ROOT / "docs/hosts.md").read_text()
  (block,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
  jobset = yaml.safe_load(block)
  (job,) = jobset["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  pod = spec["template"]["spec"]
  topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
  (container,) = pod["containers"]
  chips = container["resources"]["limits"]["google.com/tpu"]
  assert spec["parallelism"] == spec["completions"]
  hosts = math.prod(map(int, topology.split("x"))) // chips
  assert spec["completions"] == hosts
  assert "bert_jax.train" in container["command"]


def test_the_docs_name_what_is_looked_for():
  """Every variable of the table is read by JAX's detection or by ours."""
  text = (ROOT / "docs/hosts.md").read_text()
  folder = pathlib.Path(jax.__file__).parent / "_src"
  sources = [*folder.glob("clusters/*.py"), *ROOT.rglob("bert_jax/**/*.py")]
  read = "".join(p.read_text() for p in sources)
  names = set(
    re.findall(r"`((?:JAX|SLURM|TPU)_[A-Z_]+|[a-z]+-[a-z-]+s?)`", text)
  )
  assert len(names) >= 10
  assert [name for name in sorted(names) if name not in read] == []
