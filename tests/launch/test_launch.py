"""launch/pod.sh against a cloud of folders, with training that is feigned.

What a user types runs as it is; what happens to the slice is scripted.
"""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.fake_gcloud import gcloud, synopses
from tests.launch.fake_gcloud.pod import PLAN, Pod

ROOT = pathlib.Path(__file__).parents[2]
COMMANDS = ("create", "setup", "train", "stop", "status", "logs", "watch")
COMMANDS += ("collect", "delete", "up")
GROUP = {"BACKEND": "instance-group", "ACCELERATOR_TYPE": "v6e-16"}
LAST_STEP = 20
pytestmark = pytest.mark.slow


@pytest.fixture(name="pod")
def _pod(tmp_path):
  pod = Pod(tmp_path)
  yield pod
  pod.end()


@pytest.fixture(name="group_pod")
def _group_pod(tmp_path):
  pod = Pod(tmp_path, BUCKET="gs://some-bucket", **GROUP)
  yield pod
  pod.end()


def _hold_at(pod, step):
  """Has training wait at a step; returns what lets it go on."""
  path = pod.cloud / f"hold_at_{step}"
  path.touch()
  return path.unlink


def _wait_for_log(pod, text):
  logs = pod.cloud / "workers" / pod.name
  pod.wait_for(
    lambda: any(text in p.read_text() for p in logs.glob("*/bert/logs/*.log"))
  )


def _assert_finished(pod, output):
  """A run that came to its end leaves a model here and no slice there."""
  assert pod.steps()[-1] == LAST_STEP, output
  assert pod.costing() == []
  assert (pod.checkout / "runs" / pod.name / "export").is_dir()
  assert (pod.state / "ledger").read_text().splitlines()[-1].startswith("free")


def test_shellcheck_has_nothing_to_say():
  scripts = sorted(map(str, ROOT.glob("launch/*.sh")))
  scripts += map(str, ROOT.glob("tests/launch/fake_gcloud/*bin/*"))
  # The PyPI package lies beside the interpreter.
  places = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
  shellcheck = shutil.which("shellcheck", path=places)
  done = subprocess.run(
    [shellcheck, *scripts, ROOT / "tests/launch/fake_gcloud/stub_python"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("backend", [{}, GROUP], ids=["queued", "group"])
@pytest.mark.parametrize("internal", ["yes", "no"])
def test_a_dry_run_prints_commands_that_gcloud_knows_and_runs_none(
  tmp_path, backend, internal
):
  pod = Pod(
    tmp_path,
    BUCKET="gs://some-bucket",
    INTERNAL_IPS=internal,
    SERVICE_ACCOUNT="me@some-project.iam.gserviceaccount.com",
    OVERRIDES="(--config.corpus.source='my texts/*.txt')",
    **backend,
  )
  for command in COMMANDS:
    done = pod(command, "--dry-run")
    assert done.returncode == 0, done.stdout
    lines = [x for x in done.stdout.splitlines() if x.startswith("gcloud ")]
    assert lines, command
    for line in lines:
      synopses.parse(shlex.split(line)[1:])
  assert pod.calls() == []
  assert not (pod.checkout / "runs").exists()


@pytest.mark.parametrize(
  ("setting", "value", "expected"),
  [
    ("PROJECT", "", "a project's ID"),
    ("ZONE", "us-west4", "a zone, such as us-west4-a"),
    ("NAME", "My_Bert", "small letters"),
    ("BACKEND", "gke", "queued-resources or instance-group"),
    ("ACCELERATOR_TYPE", "v5e-16", "v5litepod-16"),
    ("ACCELERATOR_TYPE", "v5litepod-12", "4, 8, 16, 32"),
    ("SPOT", "true", "yes or no"),
    ("BUCKET", "my-bucket", "gs://"),
    ("CONFIG", "configs/bert_bse.py", "a file of configs/"),
    ("OVERRIDES", "(--phase1.num_steps=3)", "--config.KEY=VALUE"),
    ("PRICE_PER_CHIP_HOUR", "1,20", "a number, such as 1.20"),
    ("PRICE_PER_CHIP_HOUR", "0", "more than 0"),
    ("BUDGET", "lots", "a number"),
    ("BUGDET", "100", "BUDGET"),
  ],
)
def test_a_wrong_setting_is_told_in_one_line(
  tmp_path, setting, value, expected
):
  pod = Pod(tmp_path, **{setting: value})
  done = pod("up")
  assert done.returncode == 2
  (line,) = done.stdout.splitlines()
  assert line.startswith("error: ")
  assert setting in line and expected in line and "settings.sh" in line
  assert pod.calls() == []


def test_v5e_is_refused_as_an_instance_group(tmp_path):
  pod = Pod(tmp_path, BACKEND="instance-group")
  done = pod("create")
  assert done.returncode == 2
  assert "v6e-16" in done.stdout and len(done.stdout.splitlines()) == 1


def test_an_unknown_command_argument_or_file_is_told_in_one_line(pod):
  for words in (["launch"], ["up", "now"], ["up", "--settings=none.sh"]):
    done = pod(*words)
    assert done.returncode == 2
    assert done.stdout.startswith("error: ") and done.stdout.count("\n") == 1


def test_step_by_step_by_hand(pod):
  """Each command by itself, and again, as the README walks."""
  for command in ("create", "status", "status", "status", "setup", "train"):
    done = pod(command)
    assert done.returncode == 0, done.stdout
  pod.wait_for(lambda: LAST_STEP in pod.steps())
  assert "step 20/20" in pod("logs").stdout
  assert "all 20 steps are done" in pod("status").stdout
  for command in ("collect", "collect", "delete", "delete"):
    done = pod(command)
    assert done.returncode == 0, done.stdout
  _assert_finished(pod, done.stdout)
  assert "train: done" in pod("logs").stdout  # from the bucket


@pytest.mark.parametrize("command", ["setup", "train", "stop", "watch"])
def test_what_needs_a_slice_says_that_there_is_none(pod, command):
  done = pod(command)
  assert done.returncode == 2
  assert "is absent (NOT_FOUND); expected ready" in done.stdout


def test_up_does_all_of_it(pod):
  done = pod("up")
  assert done.returncode == 0, done.stdout
  _assert_finished(pod, done.stdout)
  assert "38.40 (30.70 to 53.80)" in done.stdout
  cost_told = done.stdout.index("38.40 expected from here")
  assert cost_told < done.stdout.index("asking for")
  again = pod("up")
  assert again.returncode == 0
  assert len(pod.calls("create")) == 1  # a finished run rents nothing


def test_up_does_all_of_it_with_an_instance_group_and_a_bucket(group_pod):
  done = group_pod("up")
  assert done.returncode == 0, done.stdout
  _assert_finished(group_pod, done.stdout)
  with gcloud.locked_state() as state:
    assert not any(state.values())


@pytest.mark.parametrize("which", ["pod", "group_pod"])
def test_up_brings_a_preempted_slice_back_and_goes_on(request, which):
  pod = request.getfixturevalue(which)
  go_on = _hold_at(pod, 12)
  up = pod.start("up")
  pod.wait_for(lambda: pod.steps() == [5, 10])
  gcloud.preempt(pod.name)
  go_on()
  assert up.wait(120) == 0, pod.output
  assert "taken away" in pod.output
  _assert_finished(pod, pod.output)
  texts = [p.read_text() for p in (pod.workdir / "logs").glob("*.log")]
  assert any("continuing after step 10" in text for text in texts)


def test_a_failed_slice_is_deleted_and_asked_for_again(pod):
  states = pod.cloud / "states.json"
  states.write_text('["WAITING_FOR_RESOURCES", "FAILED"]')
  up = pod.start("up")
  pod.wait_for(lambda: "lost (FAILED)" in pod.output)
  states.unlink()
  assert up.wait(120) == 0, pod.output
  _assert_finished(pod, pod.output)


def test_quota_is_waited_for(pod):
  pod.fault(
    "create my-bert", 2, "ERROR: RESOURCE_EXHAUSTED: Quota limit exceeded"
  )
  done = pod("up")
  assert done.returncode == 0, done.stdout
  assert "no slice (try 2): ERROR: RESOURCE_EXHAUSTED" in done.stdout
  _assert_finished(pod, done.stdout)


def test_a_refusal_that_will_not_change_is_not_tried_again(pod):
  pod.fault(
    "create my-bert", 9, "ERROR: PERMISSION_DENIED: tpu.nodes.create denied"
  )
  done = pod("up")
  assert done.returncode == 1
  assert "nothing was rented" in done.stdout
  assert "tpu.nodes.create denied" in done.stdout
  assert len(pod.calls("create my-bert")) == 1
  assert "costs" not in done.stdout.split("nothing was rented")[1]


def test_without_a_login_up_says_so_and_ends(pod):
  """What gcloud prints, of which the last line is advice."""
  advice = (
    "ERROR: (gcloud) You do not currently have an active account selected.\n"
    "Please run:\n\n  $ gcloud auth login\n\nto select an account to use."
  )
  pod.fault("describe", 9, advice)
  done = pod("up")
  assert done.returncode == 2
  assert "active account selected.; nothing was rented" in done.stdout


def test_ssh_is_tried_again_when_it_fails_itself(pod):
  pod.fault("ssh my-bert .*--worker=2 ", 2, "kex_exchange: reset", status=255)
  done = pod("up")
  assert done.returncode == 0, done.stdout
  assert "worker 2: ssh failed, trying again: kex_exchange" in done.stdout
  _assert_finished(pod, done.stdout)


def test_a_slice_that_never_answers_is_given_back(pod):
  pod.fault("worker=1 .*state", 30, "Connection timed out", status=255)
  done = pod("up")
  assert done.returncode == 0, done.stdout
  assert "giving this slice back" in done.stdout
  assert len(pod.calls("resources create")) == 2
  _assert_finished(pod, done.stdout)


def test_a_network_that_is_gone_proves_nothing(pod):
  """Neither that the slice is absent, nor that it was deleted."""
  go_on = _hold_at(pod, 8)
  up = pod.start("up")
  _wait_for_log(pod, "step 8/20")
  pod.fault("describe", 5, "ERROR: Unable to connect to the server")
  pod.wait_for(lambda: "unknown (ERROR: Unable to connect" in pod.output)
  go_on()
  assert up.wait(120) == 0, pod.output
  assert len(pod.calls("resources create")) == 1
  _assert_finished(pod, pod.output)


def test_ctrl_c_says_what_still_costs_and_up_goes_on(pod):
  go_on = _hold_at(pod, 8)
  up = pod.start("up")
  _wait_for_log(pod, "step 8/20")
  os.killpg(up.pid, signal.SIGINT)
  assert up.wait(30) == 130
  last = pod.output.splitlines()[-1]
  assert "costs 19.20 an hour" in last
  assert "pod.sh up" in last and "pod.sh delete" in last
  assert pod.costing() == ["my-bert"]
  go_on()
  done = pod("up")
  assert done.returncode == 0, done.stdout
  assert len(pod.calls("resources create")) == 1
  _assert_finished(pod, done.stdout)


def test_up_killed_at_any_moment_goes_on_when_started_again(pod):
  """kill -9 after 0.3, 0.5, 0.8, ... seconds, until it comes to its end."""
  delay, kills = 0.3, 0
  while True:
    up = pod.start("up")
    try:
      status = up.wait(delay)
      break
    except subprocess.TimeoutExpired:
      os.kill(up.pid, signal.SIGKILL)  # what it had begun goes on, as orphans
      up.wait()
      kills += 1
      delay *= 1.6
  assert status == 0, pod.output
  assert kills >= 3
  _assert_finished(pod, pod.output)
  assert len(pod.calls("resources create")) <= 1 + pod.output.count("lost")


def test_a_second_up_is_refused(pod):
  go_on = _hold_at(pod, 8)
  up = pod.start("up")
  _wait_for_log(pod, "step 8/20")
  second = pod("up")
  assert second.returncode == 2
  assert f"already, as process {up.pid}" in second.stdout
  go_on()
  assert up.wait(120) == 0, pod.output


def test_a_run_beyond_the_budget_is_refused_before_it_costs_anything(pod):
  pod.write_settings(BUDGET="20")
  done = pod("up")
  assert done.returncode == 2
  assert "BUDGET is 20; expected at least 38.40" in done.stdout
  assert pod.calls("create") == []


def test_a_run_that_does_not_fit_is_refused(pod):
  (pod.cloud / "plan.json").write_text('{"fits": false}')
  done = pod("up")
  assert done.returncode == 2
  assert "does not fit in the memory of v5litepod-16" in done.stdout
  assert pod.calls("create") == []


def test_at_the_budget_up_saves_deletes_and_collects(pod):
  _hold_at(pod, 8)
  up = pod.start("up")
  _wait_for_log(pod, "step 8/20")
  # The slice came hours ago, as this computer's book has it.
  ledger = pod.state / "ledger"
  ledger.write_text(f"billed {int(time.time()) - 6 * 3600} 19.2\n")
  assert up.wait(120) == 3, pod.output
  assert "the budget of 100 is used up; saving" in pod.output
  assert pod.steps() == [5, 8]  # SIGTERM saved the step it was at
  assert pod.costing() == []
  assert (pod.checkout / "runs/my-bert/checkpoints/8").is_dir()
  again = pod("up")
  assert again.returncode == 2 and "BUDGET is 100" in again.stdout
  assert len(pod.calls("resources create")) == 1


def test_the_budget_counts_all_slices_of_the_run(pod):
  pod.state.mkdir(parents=True)
  ledger = pod.state / "ledger"
  ledger.write_text("billed 1000 19.2\nfree 4600\nbilled 9000 10\nfree 10800\n")
  assert "24.20 spent of the budget of 100" in pod("status").stdout


def test_training_that_fails_again_and_again_is_given_up(pod):
  (pod.cloud / "fail_at_3").write_text("1")
  done = pod("up")
  assert done.returncode == 1
  assert "3 of 3 without a new checkpoint" in done.stdout
  assert "worker 1: it broke at step 3" in done.stdout
  assert pod.costing() == []
  assert any((pod.workdir / "logs").iterdir())


def test_training_that_gets_further_each_time_is_not_given_up(pod):
  """Four crashes, each after a new checkpoint."""
  for step in (6, 11, 16, 19):
    (pod.cloud / f"fail_at_{step}").write_text("1")
  up = pod.start("up")
  for step in (6, 11, 16, 19):
    pod.wait_for(lambda s=step: f"last=it broke at step {s}" in pod.output)
    (pod.cloud / f"fail_at_{step}").unlink()
  assert up.wait(120) == 0, pod.output
  _assert_finished(pod, pod.output)


def test_a_mistake_in_the_settings_is_not_tried_again(pod):
  """Training's exit status 2."""
  (pod.cloud / "fail_at_1").write_text("2")
  done = pod("up")
  assert done.returncode == 1
  assert "training failed" in done.stdout and "2 of 3" not in done.stdout
  assert pod.costing() == []


def test_a_worker_with_another_version_is_named(pod):
  (pod.cloud / "jax_of_worker_2").write_text("0.6.2")
  done = pod("up")
  assert done.returncode == 1
  assert "worker 2: has versions python 3.12.1 jax 0.6.2" in done.stdout
  assert "worker 1: has" not in done.stdout
  assert pod.costing() == []


def test_a_worker_that_did_not_start_is_started(pod):
  """The others hang until all have come."""
  _hold_at(pod, 8)
  pod.fault("worker=3 .*start 3", 1, "Connection reset", status=1)
  up = pod.start("up")
  pod.wait_for(lambda: len(pod.calls("start 3")) == 2)
  (pod.cloud / "hold_at_8").unlink()
  assert up.wait(120) == 0, pod.output
  _assert_finished(pod, pod.output)


def test_deletion_is_tried_until_the_slice_is_gone(pod):
  (pod.cloud / "states.json").write_text(
    '["PROVISIONING", "PROVISIONING", "PROVISIONING", "ACTIVE"]'
  )
  assert pod("create").returncode == 0
  done = pod("delete")
  assert done.returncode == 0, done.stdout
  assert "still starting (PROVISIONING)" in done.stdout
  assert pod.costing() == []


def test_a_slice_deletes_itself_when_the_budget_is_gone_and_nobody_comes(pod):
  _hold_at(pod, 8)
  for command in ("create", "status", "status", "status"):
    assert pod(command).returncode == 0
  # The budget's time is over, and the ten minutes that the guard adds.
  over = 100 / 19.2 * 3600 + 600
  (pod.state / "ledger").write_text(f"billed {int(time.time() - over)} 19.2\n")
  assert pod("setup").returncode == 0
  pod.wait_for(lambda: pod.costing() == [])


def test_a_lockfile_of_a_killed_process_is_removed(pod):
  for command in ("create", "status", "status", "status", "setup"):
    assert pod(command).returncode == 0
  home = pod.cloud / "workers/my-bert/1"
  (home / "tmp/libtpu_lockfile").touch()
  assert pod("train").returncode == 0
  assert not (home / "tmp/libtpu_lockfile").exists()


def test_stop_saves_and_training_goes_on_from_there(pod):
  go_on = _hold_at(pod, 8)
  for command in ("create", "status", "status", "status", "setup", "train"):
    assert pod(command).returncode == 0
  _wait_for_log(pod, "step 8/20")
  assert pod("stop").returncode == 0
  assert pod.steps() == [5, 8]
  go_on()
  assert pod("train").returncode == 0
  pod.wait_for(lambda: LAST_STEP in pod.steps())


def test_what_is_uploaded_holds_the_code_and_no_settings(pod):
  for command in ("create", "status", "status", "status", "setup"):
    assert pod(command).returncode == 0
  home = pod.cloud / "workers/my-bert/3/bert"
  assert (home / "bert_jax/train.py").is_file()
  assert not (home / "launch/settings.sh").exists()
  assert (home / "corpus/manifest.json").is_file()


def test_a_missing_gcloud_or_installation_is_told_in_one_line(pod, tmp_path):
  tools = tmp_path / "tools"
  tools.mkdir()
  for name in ("bash", "awk", "sed", "mkdir", "dirname", "cat"):
    (tools / name).symlink_to(shutil.which(name))
  pod.environment["PATH"] = str(tools)
  done = pod("up")
  assert done.returncode == 2 and "gcloud is not on PATH" in done.stdout
  shutil.copy(ROOT / "tests/launch/fake_gcloud/bin/gcloud", tools)
  pod.environment["PYTHON"] = ".venv/bin/python"
  done = pod("up")
  assert done.returncode == 2 and "launch/install.sh tpu" in done.stdout


def test_the_plan_is_made_once(pod):
  pod.write_settings(BUDGET="1")
  pod("up")
  (pod.cloud / "plan.json").write_text("not read again")
  assert f"{PLAN['money']:.2f}" in pod("up").stdout


def test_the_example_settings_hold_every_setting():
  text = (ROOT / "launch/settings.example.sh").read_text()
  known = (ROOT / "launch/pod_settings.sh").read_text()
  names = re.search(r"settings_names=\(([^)]*)\)", known)[1].split()
  assert sorted(re.findall(r"^([A-Z_]+)=", text, re.M)) == sorted(names)
