"""No slice bills beyond its deadline; what is called gone is gone."""

import os
import re
import shlex
import signal
import subprocess
import time

import pytest

from tests.launch.fake_gcloud.pod import PLAN, Pod

GROUP = {"BACKEND": "instance-group", "ACCELERATOR_TYPE": "v6e-16"}
GROUP |= {"PRICE_PER_CHIP_HOUR": "1.2"}
SERVICE_ACCOUNT = "me@some-project.iam.gserviceaccount.com"


@pytest.fixture(name="pod")
def _pod(tmp_path):
  pod = Pod(tmp_path / "pod")
  yield pod
  pod.close()


@pytest.fixture(name="group_pod")
def _group_pod(tmp_path):
  pod = Pod(tmp_path / "group", **GROUP)
  yield pod
  pod.close()


def _hold_at(pod, step):
  path = pod.cloud.folder / f"hold_at_{step}"
  path.touch()
  return path.unlink


def _write_small_budget(pod, seconds):
  """Sets a budget that lasts so many seconds of the slice."""
  budget = 19.2 * seconds / 3600
  pod.write_settings(BUDGET=f"{budget:.6f}")
  pod.write_plan(PLAN | {"money": budget / 2})


def _start_training(pod, *words):
  """Starts `up` and waits until training holds at step 8."""
  go_on = _hold_at(pod, 8)
  up = pod.start("up", *words)
  pod.wait_for(lambda: "step 8/20" in pod.output)
  return up, go_on


def _kill(process):
  """The computer is switched off."""
  os.killpg(process.pid, signal.SIGKILL)
  process.wait()


NOT_GONE = {
  "broken wrapper": (
    "/usr/bin/gcloud: line 7: python3: command not found",
    127,
  ),
  "403": (
    "ERROR: (gcloud) PERMISSION_DENIED: Permission denied, or Resource "
    "'my-bert' was not found",
    1,
  ),
  "another thing": (
    "ERROR: (gcloud) NOT_FOUND: Resource 'projects/some-project/locations/"
    "us-west4-a/nodes/my-bert' was not found",
    1,
  ),
  "nothing": ("gcloud crashed", 1),
}


@pytest.mark.parametrize("case", NOT_GONE)
def test_only_the_resources_own_not_found_counts_as_gone(pod, case):
  up, _ = _start_training(pod)
  _kill(up)
  stderr, status = NOT_GONE[case]
  pod.fault("resources (describe|delete) my-bert", 999, stderr, status)
  delete = pod.start("delete")
  pod.wait_for(lambda: pod.output.count("is still unknown") == 2)
  assert pod.costing() == ["my-bert"]
  assert "gone" not in pod.output
  pod.cloud.faults.clear()
  assert delete.wait(30) == 0
  assert "the slice is gone; it costs nothing any more" in pod.output
  assert pod.costing() == []


@pytest.mark.parametrize(
  ("setting", "value"),
  [
    ("ZONE", "us-west4-b"),
    ("PROJECT", "other-project"),
    ("BACKEND", "instance-group"),
    ("ACCELERATOR_TYPE", "v5litepod-16"),
  ],
)
def test_a_slice_stays_known_where_it_was_asked_for(tmp_path, setting, value):
  """After a change of settings nothing is rented until it is deleted."""
  pod = Pod(tmp_path, **(GROUP | {"BACKEND": "queued-resources"}))
  pod.cloud.has_capacity = False
  up = pod.start("up")
  pod.wait_for(lambda: pod.costing() == ["my-bert"])
  _kill(up)
  pod.write_settings(**{setting: value})
  done = pod("up")
  assert done.returncode == 2
  assert "was asked for in us-west4-a of some-project" in done.stdout
  assert len(pod.calls("create my-bert")) == 1
  done = pod("delete")
  assert done.returncode == 0, done.stdout
  assert pod.costing() == []
  deleted = pod.calls("delete my-bert")[0]
  assert "--zone=us-west4-a --project=some-project" in deleted
  pod.close()


def test_up_obeys_a_delete_and_rents_nothing_again(pod):
  up, _ = _start_training(pod)
  done = pod("delete")
  assert done.returncode == 0, done.stdout
  assert up.wait(10) == 1
  assert "delete was asked for" in pod.output
  assert pod.costing() == []
  assert len(pod.calls("resources create")) == 1


def test_a_delete_while_up_asks_for_the_slice_deletes_it_too(pod):
  pod.fault("resources create", seconds=1)
  up = pod.start("up")
  pod.wait_for(lambda: pod.calls("resources create"))
  assert pod.costing() == []  # it is on its way
  done = pod("delete")
  assert done.returncode == 0, done.stdout
  assert up.poll() == 1
  assert pod.costing() == []


def test_up_on_another_computer_obeys_a_delete(pod):
  """Whose mark is in the bucket alone."""
  up, _ = _start_training(pod)
  (pod.workdir / "mark").write_text("delete\n")
  assert up.wait(20) == 1
  assert pod.costing() == []


def test_requests_carry_googles_own_limits(pod, group_pod):
  pod.write_settings(QUEUE_HOURS="1.5")
  (create,) = [
    line
    for line in pod("up", "--dry-run").stdout.splitlines()
    if "resources create" in line
  ]
  assert "--valid-until-duration=5400s" in create
  assert "--metadata-from-file=startup-script=" in create
  (create,) = [
    line
    for line in group_pod("up", "--dry-run").stdout.splitlines()
    if "instance-templates create" in line
  ]
  seconds = 100 / 19.2 * 3600 + 600
  assert f"--max-run-duration={int(seconds)}s" in create
  assert "--instance-termination-action=DELETE" in create
  assert "--metadata-from-file=startup-script=" in create


def test_a_request_lapses_while_the_computer_is_off(pod):
  pod.write_settings(QUEUE_HOURS="0.0002")
  pod.cloud.has_capacity = False
  up = pod.start("up")
  pod.wait_for(lambda: pod.costing())
  _kill(up)
  (found,) = pod.cloud.slices.values()
  pod.wait_for(lambda: found.state == "FAILED")
  pod.cloud.has_capacity = True
  time.sleep(0.2)
  assert found.machines == []


def test_ctrl_c_in_the_queue_says_what_will_cost_and_the_slice_ends_itself(pod):
  pod.cloud.has_capacity = False
  up = pod.start("up")
  pod.wait_for(lambda: "queued" in pod.output)
  os.killpg(up.pid, signal.SIGINT)
  assert up.wait(30) == 130
  last = pod.output.splitlines()[-1]
  assert "costs 19.20 an hour" in last
  assert "pod.sh up" in last and "pod.sh delete" in last
  pod.cloud.has_capacity = True
  pod.wait_for(lambda: pod.costing() == [])
  assert pod.steps()[-1] == 20
  done = pod("up")
  assert done.returncode == 0, done.stdout
  assert len(pod.calls("resources create")) == 1


def test_kill_9_during_setup_leaves_a_slice_that_finishes_and_ends(pod):
  pod.fault("^0 storage rsync", seconds=1)
  up = pod.start("up")
  pod.wait_for(lambda: pod.calls("storage rsync", who="0"))
  _kill(up)
  pod.wait_for(lambda: pod.costing() == [])
  assert pod.steps()[-1] == 20


@pytest.mark.parametrize("which", ["pod", "group_pod"])
def test_a_computer_asleep_after_the_end_costs_nothing(request, which):
  pod = request.getfixturevalue(which)
  up, go_on = _start_training(pod)
  os.kill(up.pid, signal.SIGSTOP)
  go_on()
  pod.wait_for(lambda: pod.costing() == [])
  assert pod.steps()[-1] == 20
  (report,) = pod.workdir.glob("slices/*/worker-0.report")
  assert "phase=finished" in report.read_text()
  os.kill(up.pid, signal.SIGCONT)
  assert up.wait(30) == 0, pod.output


def test_a_reboot_goes_on_with_training_and_moves_no_deadline(pod):
  up, go_on = _start_training(pod)
  _kill(up)
  (timers,) = pod.cloud.folder.glob("machines/my-bert/*/0/timers")
  time.sleep(2)
  pod.cloud.reboot()
  pod.wait_for(lambda: timers.read_text().count("\n") == 2)
  first, second = map(int, timers.read_text().replace("s", "").split())
  assert first == int(100 / 19.2 * 3600)
  assert first - 60 < second <= first - 2
  go_on()
  pod.wait_for(lambda: pod.costing() == [])
  texts = [p.read_text() for p in pod.workdir.glob("slices/*/*.log")]
  assert any("continuing after step 5" in text for text in texts)


@pytest.mark.slow
def test_at_the_deadline_a_slice_saves_and_ends_without_anybody(pod):
  _write_small_budget(pod, 7)
  up, _ = _start_training(pod)
  _kill(up)
  pod.wait_for(lambda: pod.costing() == [])
  assert pod.steps() == [5, 8]  # SIGTERM saved the step it was at
  (report,) = pod.workdir.glob("slices/*/worker-0.report")
  assert "phase=deadline" in report.read_text()


@pytest.mark.slow
def test_google_deletes_the_machines_of_a_group_that_does_not_end(group_pod):
  """Where the machines' own guard can't delete."""
  pod = group_pod
  pod.cloud.rights = False
  up, _ = _start_training(pod)
  _kill(up)
  (found,) = pod.cloud.slices.values()
  (deadline,) = found.deadlines
  found.deadlines[:] = [(0, deadline[1])]  # the time is over
  pod.wait_for(lambda: found.machines == [])


def test_up_says_when_the_slice_may_not_delete_itself(pod):
  pod.cloud.rights = False
  up, go_on = _start_training(pod)
  assert "the machines may not delete the slice; keep this" in pod.output
  go_on()
  assert up.wait(30) == 0, pod.output
  assert pod.costing() == []
  assert any("no-such-slice" in line for line in pod.calls(who="0"))


def test_a_right_that_is_granted_later_is_noticed(pod):
  pod.cloud.rights = False
  _start_training(pod)
  (report,) = pod.workdir.glob("slices/*/worker-0.report")
  assert "guard=refused" in report.read_text()
  pod.cloud.rights = True
  pod.wait_for(lambda: "guard=armed" in report.read_text())
  (log,) = pod.workdir.glob("slices/*/worker-0.log")
  assert log.read_text().count("may not delete the slice") == 1


def test_the_right_to_delete_is_tried_without_deleting(pod):
  up, _ = _start_training(pod)
  _kill(up)
  assert pod.costing() == ["my-bert"]
  tries = pod.calls("delete", who="0")
  assert len(tries) == 1 and "my-bert-no-such-slice" in tries[0]
  (report,) = pod.workdir.glob("slices/*/worker-0.report")
  assert "guard=armed" in report.read_text()


@pytest.mark.slow
def test_gcloud_that_hangs_is_left_after_two_minutes(pod):
  """A minute here lasts 0.01 seconds."""
  quick = pod.checkout / "timeout"
  quick.write_text(
    "#!/usr/bin/env bash\n"
    '[[ "$3" =~ ^(120|300|600|0)$ ]] || exit 64\n'
    'exec /usr/bin/timeout "$1" "$2" "$((($3 + 119) / 120)).5" "${@:4}"\n'
  )
  quick.chmod(0o755)
  pod.environment["PATH"] = f"{pod.checkout}:{pod.environment['PATH']}"
  up, go_on = _start_training(pod)
  pod.fault("describe my-bert", 2, seconds=60)
  pod.wait_for(lambda: "no answer in two minutes" in pod.output)
  go_on()
  assert up.wait(30) == 0, pod.output


def test_a_request_that_google_gives_up_is_explained_and_given_up(pod):
  pod.cloud.failure = "There is no more capacity in the zone."
  started = time.monotonic()
  done = pod("up")
  assert done.returncode == 1
  reason = f"Google gave the request up: {pod.cloud.failure} (failure 3 of 3"
  assert reason in done.stdout
  assert len(pod.calls("resources create")) == 3
  assert time.monotonic() - started > 0.1 * (2 + 4)  # it backed off
  assert pod.costing() == []


def test_a_bucket_that_refuses_an_answer_makes_no_run_unfinished(pod):
  up, go_on = _start_training(pod)
  denied = "ERROR: (gcloud.storage.ls) HTTPError 403: does not have access"
  pod.fault("user storage (ls|cat)", 12, denied)
  pod.wait_for(lambda: "the bucket does not answer: ERROR" in pod.output)
  go_on()
  assert up.wait(30) == 0, pod.output
  assert len(pod.calls("resources create")) == 1
  assert "fail" not in pod.output


def test_a_start_over_budget_saves_deletes_and_says_so(pod):
  up, _ = _start_training(pod)
  _kill(up)
  hours_ago = int(time.time()) - 6 * 3600
  (pod.state / "ledger").write_text(f"billed {hours_ago} 19.2\n")
  done = pod("up")
  assert done.returncode == 3, done.stdout
  assert "the budget of 100 is used up; saving" in done.stdout
  assert pod.costing() == []
  assert pod.steps() == [5, 8]
  assert (pod.checkout / "runs/my-bert/checkpoints/8").is_dir()
  again = pod("up")
  assert again.returncode == 2 and "BUDGET is 100" in again.stdout
  assert len(pod.calls("resources create")) == 1


def test_at_the_budget_up_saves_deletes_and_collects(pod):
  up, _ = _start_training(pod)
  hours_ago = int(time.time()) - 6 * 3600
  (pod.state / "ledger").write_text(f"billed {hours_ago} 19.2\n")
  assert up.wait(30) == 3, pod.output
  assert pod.steps() == [5, 8]
  assert pod.costing() == []
  assert (pod.checkout / "runs/my-bert/checkpoints/8").is_dir()


@pytest.mark.slow
def test_machines_that_stay_silent_are_replaced(pod):
  script = pod.checkout / "launch/pod_up.sh"
  text = script.read_text()
  assert "max_silent_looks=40 " in text
  script.write_text(text.replace("max_silent_looks=40 ", "max_silent_looks=9 "))
  pod.fault(r"^0 storage cp report", 999, "ERROR: no network")
  go_on = _hold_at(pod, 8)
  up = pod.start("up")
  pod.wait_for(lambda: "0 of 1 machines reported" in pod.output)
  pod.cloud.faults.clear()
  go_on()
  assert up.wait(30) == 0, pod.output


@pytest.mark.slow
def test_a_template_is_made_anew_for_each_slice(group_pod):
  pod = group_pod
  up, _ = _start_training(pod)
  pod.cloud.preempt()
  _kill(up)
  assert pod("delete").returncode == 0
  pod.cloud.templates["my-bert"] = pod.cloud.policies["my-bert"] = {}  # stale
  pod.write_settings(CAPACITY="on-demand", SERVICE_ACCOUNT=SERVICE_ACCOUNT)
  up = pod.start("up")
  pod.wait_for(lambda: len(pod.calls("managed create")) == 2)
  _kill(up)
  flags = pod.cloud.templates["my-bert"]
  assert flags["--service-account"] == SERVICE_ACCOUNT
  assert "--provisioning-model" not in flags
  assert "failure" not in pod.output


def test_flex_start_is_asked_for_as_google_documents_it(group_pod):
  pod = group_pod
  pod.write_settings(CAPACITY="flex-start", BUDGET="99999")
  output = pod("up", "--dry-run").stdout
  (create,) = re.findall(r"gcloud .*instance-templates create.*", output)
  words = shlex.split(create)
  assert "--provisioning-model=FLEX_START" in words
  assert "--reservation-affinity=none" in words
  assert "--max-run-duration=604800s" in words  # seven days, the most


CHECKS = {
  "bucket elsewhere": "lies in europe-west4; expected us-west4",
  "service account": "Unknown service account nobody@some-project",
  "preflight": "storage.objects.delete is denied",
  "vocabulary": "mine/vocab.txt is not there",
  "model": "my/model is not there",
  "budget": "BUDGET is 20; expected at least 38.40",
  "memory": "does not fit in the memory of v5litepod-8",
  "bucket": "can't be read: ERROR: (gcloud.storage) gs://none not found: 404",
  "gcloud": "can't look at my-bert in us-west4-a: ERROR: SERVICE_DISABLED",
}


@pytest.mark.parametrize("case", CHECKS)
def test_what_a_run_needs_is_checked_before_anything_is_rented(pod, case):
  if case == "bucket elsewhere":
    pod.cloud.location = "EUROPE-WEST4"
  elif case == "service account":
    account = "nobody@some-project.iam.gserviceaccount.com"
    pod.write_settings(SERVICE_ACCOUNT=account)
  elif case == "preflight":
    (pod.cloud.folder / "preflight_error_user").write_text(CHECKS[case])
  elif case == "vocabulary":
    pod.write_settings(OVERRIDES="(--config.corpus.vocab_file=mine/vocab.txt)")
  elif case == "model":
    pod.write_settings(OVERRIDES="(--init=my/model)")
  elif case == "budget":
    pod.write_settings(BUDGET="20")
  elif case == "memory":
    pod.write_plan({"fits": False})
  elif case == "bucket":
    pod.write_settings(BUCKET="gs://none")
  else:
    pod.fault("describe", 1, "ERROR: SERVICE_DISABLED: Cloud TPU API")
  done = pod("up")
  assert done.returncode == 2
  assert CHECKS[case] in done.stdout
  assert pod.calls("create") == []
  assert "slice my-bert is or will be" not in done.stdout


def test_storage_is_tried_here_and_on_the_first_machine(pod):
  pod.write_settings(ACCELERATOR_TYPE="v5litepod-16", PRICE_PER_CHIP_HOUR="1.2")
  assert pod("up").returncode == 0
  assert (pod.cloud.folder / "preflights").read_text() == "user\n0\n"


def test_a_service_account_that_may_not_write_is_told_and_the_slice_goes(pod):
  error = pod.cloud.folder / "preflight_error_0"
  error.write_text("storage.objects.create is denied")
  done = pod("up")
  assert done.returncode == 1
  assert "last=error: storage.objects.create is denied" in done.stdout
  assert pod.costing() == []


def test_the_budget_counts_all_slices_of_the_run(pod):
  pod.state.mkdir(parents=True)
  ledger = pod.state / "ledger"
  ledger.write_text("billed 1000 19.2\nfree 4600\nbilled 9000 10\nfree 10800\n")
  assert "24.20 spent of the budget of 100" in pod("status").stdout


def test_a_slice_that_went_days_ago_is_not_counted_until_now(pod):
  up, go_on = _start_training(pod)
  _kill(up)
  go_on()
  pod.wait_for(lambda: pod.costing() == [])
  days_ago = int(time.time()) - 3 * 86400
  (pod.state / "ledger").write_text(f"billed {days_ago} 19.2\n")
  (report,) = pod.workdir.glob("slices/*/worker-0.report")
  report.write_text(
    f"worker 0: guard=armed at={days_ago + 3000} phase=x last=\n"
  )
  assert "19.20 spent of the budget" in pod("status").stdout


def test_deletion_is_tried_until_the_slice_is_gone(pod):
  pod.fault("^user .*delete my-bert", 2, "ERROR: FAILED_PRECONDITION")
  up, _ = _start_training(pod)
  _kill(up)
  done = pod("delete")
  assert done.returncode == 0, done.stdout
  assert "still ready (ACTIVE); it may cost 19.20 an hour" in done.stdout
  assert "FAILED_PRECONDITION" in done.stdout
  assert pod.costing() == []


def test_a_request_that_google_does_not_show_at_once_is_not_made_twice(pod):
  absent = (
    "ERROR: NOT_FOUND: Resource 'projects/some-project/locations/us-west4-a/"
    "queuedResources/my-bert' was not found"
  )
  pod.fault("describe my-bert", 3, absent)  # before the request, and after
  done = pod("up")
  assert done.returncode == 0, done.stdout
  assert len(pod.calls("resources create")) == 1


@pytest.mark.slow
def test_up_started_again_can_replace_a_slice_that_it_did_not_ask_for(pod):
  """It checks and uploads anew before it asks."""
  up, go_on = _start_training(pod)
  _kill(up)
  up = pod.start("up")
  pod.wait_for(lambda: "worker 0 training" in pod.output)
  pod.cloud.preempt()
  go_on()
  assert up.wait(30) == 0, pod.output
  assert len(pod.calls("resources create")) == 2
  assert pod.costing() == []


def test_another_computer_follows_and_ends_the_run(pod):
  """One on which nothing is known of the slice."""
  up, go_on = _start_training(pod)
  _kill(up)
  subprocess.run(["rm", "-r", pod.state], check=True)
  up = pod.start("up")
  pod.wait_for(lambda: "worker 0 training" in pod.output)
  go_on()
  assert up.wait(30) == 0, pod.output
  assert len(pod.calls("resources create")) == 1
  assert pod.costing() == []
