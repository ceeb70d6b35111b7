"""launch/pod.sh from settings to the model, with training that is feigned.

What a user types runs as it is; the machines of the slice run their startup
script; what Google does is scripted (tests/launch/fake_gcloud/).
"""

import contextlib
import json
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

from tests.launch.fake_gcloud import synopses
from tests.launch.fake_gcloud.pod import Pod

ROOT = pathlib.Path(__file__).parents[2]
COMMANDS = ("up", "status", "logs", "stop", "collect", "delete")
GROUP = {"BACKEND": "instance-group", "ACCELERATOR_TYPE": "v6e-16"}
GROUP |= {"PRICE_PER_CHIP_HOUR": "1.2"}
LAST_STEP = 20
REAL_GCLOUD = pathlib.Path("/usr/lib/google-cloud-sdk")
# What the newest release takes and 528 of June 2025 did not yet.
NEWER_FLAGS = ("--target-size-policy-mode=bulk", "FLEX_START")


@pytest.fixture(name="pod")
def _pod(tmp_path):
  pod = Pod(tmp_path)
  yield pod
  pod.close()


@pytest.fixture(name="group_pod")
def _group_pod(tmp_path):
  pod = Pod(tmp_path, **GROUP)
  yield pod
  pod.close()


def _hold_at(pod, step):
  """Has training wait at a step; returns what lets it go on."""
  path = pod.cloud.folder / f"hold_at_{step}"
  path.touch()
  return path.unlink


def _assert_finished(pod, output):
  """A run that came to its end leaves a model here and no slice there."""
  assert pod.steps()[-1] == LAST_STEP, output
  assert pod.costing() == []
  assert (pod.checkout / "runs" / pod.name / "export").is_dir()
  assert (pod.state / "ledger").read_text().splitlines()[-1].startswith("free")


def test_shellcheck_has_nothing_to_say():
  scripts = sorted(map(str, ROOT.glob("launch/*.sh")))
  scripts += map(str, ROOT.glob("tests/launch/fake_gcloud/*bin/*"))
  scripts += map(str, ROOT.glob("tests/launch/fake_gcloud/*_python"))
  scripts.append(str(ROOT / "tests/launch/fake_gcloud/reaper"))
  # The PyPI package lies beside the interpreter.
  places = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
  done = subprocess.run(
    [shutil.which("shellcheck", path=places), *scripts],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stdout) == (0, "")


_LEFT_ALONE = """
import pathlib, sys, time
from tests.launch.fake_gcloud.pod import Pod
pod = Pod(pathlib.Path(sys.argv[1]))
(pod.cloud.folder / "hold_at_8").touch()
up = pod.start("up")
pod.wait_for(lambda: "step 8/20" in pod.output)
print(up.pid, flush=True)
time.sleep(600)
"""


def _processes_of(folder):
  wanted = f"FAKE_CLOUD={folder}".encode()
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
    with contextlib.suppress(OSError):
      if wanted in path.read_bytes().split(b"\0"):
        found.append(path.parent.name)
  return found


def test_what_tests_start_ends_with_pytest(tmp_path):
  """`up`, and the machines with their timers, though they are detached."""
  pytest_process = subprocess.Popen(
    [sys.executable, "-c", _LEFT_ALONE, tmp_path],
    cwd=ROOT,
    stdout=subprocess.PIPE,
  )
  up = pytest_process.stdout.readline().strip().decode()
  running = _processes_of(tmp_path / "cloud")
  assert up in running and len(running) > 4
  pytest_process.kill()
  pytest_process.communicate()
  deadline = time.monotonic() + 10
  while _processes_of(tmp_path / "cloud") and time.monotonic() < deadline:
    time.sleep(0.05)
  assert _processes_of(tmp_path / "cloud") == []


def test_nothing_unpinned_is_piped_from_the_network_into_a_shell():
  text = "".join(p.read_text() for p in ROOT.glob("launch/*.sh"))
  assert not re.search(r"(curl|wget)[^\n]*\|\s*(sudo )?(ba)?sh", text)
  assert re.search(r"pip install --quiet uv==\d", text)


def _dry_run_lines(pod, command):
  """Returns the gcloud lines that a dry run prints."""
  done = pod(command, "--dry-run")
  assert done.returncode == 0, done.stdout
  return [x for x in done.stdout.splitlines() if x.startswith("gcloud ")]


@pytest.mark.parametrize("backend", [{}, GROUP], ids=["queued", "group"])
def test_a_dry_run_prints_commands_that_gcloud_knows_and_runs_none(
  tmp_path, backend
):
  pod = Pod(
    tmp_path,
    INTERNAL_IPS="yes",
    SERVICE_ACCOUNT="me@some-project.iam.gserviceaccount.com",
    OVERRIDES="(--config.corpus.source='my texts/*.txt')",
    **backend,
  )
  for command in COMMANDS:
    lines = _dry_run_lines(pod, command)
    assert lines, command
    for line in lines:
      synopses.parse(shlex.split(line)[1:])
      assert " ssh " not in line and " scp " not in line
  assert pod.calls() == []
  assert not (pod.checkout / "runs").exists()
  pod.close()


@pytest.mark.slow
@pytest.mark.skipif(
  not REAL_GCLOUD.is_dir(), reason="Google's gcloud is not installed here"
)
def test_the_parser_of_the_real_gcloud_takes_every_command(tmp_path):
  """Which shows names and values of flags, not what Google does with them."""
  lines = []
  settings = {"SERVICE_ACCOUNT": "me@some-project.iam.gserviceaccount.com"}
  settings |= {"INTERNAL_IPS": "yes"}
  for backend in ({}, GROUP):
    folder = tmp_path / backend.get("BACKEND", "queued")
    pod = Pod(folder, **settings, **backend)
    for command in COMMANDS:
      lines += _dry_run_lines(pod, command)
    pod.close()
  script = tmp_path / "startup.sh"
  script.touch()
  lines = [
    re.sub(r"startup-script=\S+", f"startup-script={script}", x) for x in lines
  ]
  lines = [
    " ".join(w for w in line.split() if not w.endswith(NEWER_FLAGS))
    for line in dict.fromkeys(lines)
  ]
  (python,) = REAL_GCLOUD.glob("platform/bundledpython*/bin/python3")
  done = subprocess.run(
    [python, ROOT / "tests/launch/fake_gcloud/real_parser.py", REAL_GCLOUD],
    input="\n".join(x.removeprefix("gcloud ") for x in lines),
    env={"PATH": os.environ["PATH"], "CLOUDSDK_CONFIG": str(tmp_path)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.count("parsed") == len(lines) > 15


@pytest.mark.parametrize(
  ("setting", "value", "expected"),
  [
    ("PROJECT", "", "my-project-123"),
    ("ZONE", "us-west4", "a zone, such as us-west4-a"),
    ("NAME", "My_Bert", "small letters"),
    ("BACKEND", "gke", "queued-resources or instance-group"),
    ("ACCELERATOR_TYPE", "v5e-16", "v5litepod-16"),
    ("ACCELERATOR_TYPE", "v5litepod-12", "4, 8, 16, 32"),
    ("CAPACITY", "yes", "spot, flex-start or on-demand"),
    ("CAPACITY", "flex-start", "spot or on-demand with BACKEND"),
    ("QUEUE_HOURS", "1 day", "hours, such as 24"),
    ("BUCKET", "my-bucket", "gs://"),
    ("CONFIG", "configs/bert_bse.py", "a file of configs/"),
    ("OVERRIDES", "(--phase1.num_steps=3)", "--config.KEY=VALUE"),
    ("PRICE_PER_CHIP_HOUR", "1,20", "a number above 0, such as 1.20"),
    ("PRICE_PER_CHIP_HOUR", "0.00", "above 0"),
    ("BUDGET", "lots", "a number"),
    ("BUGDET", "100", "BUDGET"),
  ],
)
def test_a_wrong_setting_is_told_in_one_line(pod, setting, value, expected):
  pod.write_settings(**{setting: value})
  done = pod("up")
  assert done.returncode == 2
  (line,) = done.stdout.splitlines()
  assert line.startswith("error: ")
  assert setting in line and expected in line and "settings.sh" in line
  assert pod.calls() == []


def test_v5e_is_refused_as_an_instance_group(pod):
  pod.write_settings(BACKEND="instance-group")
  done = pod("up")
  assert done.returncode == 2
  assert "v6e-16" in done.stdout and len(done.stdout.splitlines()) == 1


def test_an_unknown_command_argument_or_file_is_told_in_one_line(pod):
  for words in (["launch"], ["up", "now"], ["up", "--settings=none.sh"]):
    done = pod(*words)
    assert done.returncode == 2
    assert done.stdout.startswith("error: ") and done.stdout.count("\n") == 1


def test_help_names_every_command(pod):
  done = pod("help")
  assert done.returncode == 0
  assert re.findall(r"^([a-z]+)  ", done.stdout, re.M) == [
    *("up", "status", "logs", "stop", "collect", "delete")
  ]


def test_a_missing_gcloud_or_installation_is_told_in_one_line(pod, tmp_path):
  tools = tmp_path / "tools"
  tools.mkdir()
  for name in ("bash", "awk", "sed", "mkdir", "dirname", "cat", "sort"):
    (tools / name).symlink_to(shutil.which(name))
  pod.environment["PATH"] = str(tools)
  done = pod("up")
  assert done.returncode == 2 and "gcloud is not on PATH" in done.stdout
  pod.environment["PYTHON"] = ".venv/bin/python"
  done = pod("up")
  assert done.returncode == 2 and "launch/install.sh tpu" in done.stdout


def test_the_example_settings_hold_every_setting():
  text = (ROOT / "launch/settings.example.sh").read_text()
  known = (ROOT / "launch/pod_settings.sh").read_text()
  names = re.search(r"settings_names=\(([^)]*)\)", known)[1].split()
  assert sorted(re.findall(r"^([A-Z_]+)=", text, re.M)) == sorted(names)


def test_run_facts_reads_the_config_as_train_does():
  done = subprocess.run(
    [
      *(
        sys.executable,
        "launch/run_facts.py",
        "--config=configs/quickstart.py",
      ),
      "--config.phase1.num_steps=7000",
      "--config.phase2.num_steps=11",
      "--config.corpus.vocab_file=my/vocab.txt",
    ],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.stdout == "steps 7011\nvocab_file my/vocab.txt\n", done.stderr


def test_up_does_all_of_it(pod):
  pod.write_settings(ACCELERATOR_TYPE="v5litepod-16", PRICE_PER_CHIP_HOUR="1.2")
  done = pod("up")
  assert done.returncode == 0, done.stdout
  _assert_finished(pod, done.stdout)
  assert "38.40 (30.70 to 53.80)" in done.stdout
  cost_told = done.stdout.index("38.40 expected from here")
  assert cost_told < done.stdout.index("asking for")
  logs = pod.workdir.glob("slices/*/worker-*.log")
  assert sorted(p.stem for p in logs) == [f"worker-{n}" for n in range(4)]
  again = pod("up")
  assert again.returncode == 0
  assert len(pod.calls("create")) == 1  # a finished run rents nothing
  assert "train: done" in pod("logs").stdout
  assert "step 20 of 20" in pod("status").stdout


def test_up_does_all_of_it_with_an_instance_group(group_pod):
  done = group_pod("up")
  assert done.returncode == 0, done.stdout
  _assert_finished(group_pod, done.stdout)
  assert not group_pod.cloud.templates and not group_pod.cloud.policies


def test_what_a_slice_gets_is_the_code_and_no_settings(pod):
  _hold_at(pod, 8)
  up = pod.start("up")
  pod.wait_for(lambda: pod.steps() == [5])
  up.kill()
  up.wait()
  (home,) = pod.cloud.folder.glob("machines/my-bert/*/0")
  home = next(home.rglob("var/lib/bert"))
  assert (home / "bert_jax/train.py").is_file()
  assert not (home / "launch/settings.sh").exists()
  assert (home / "runs/my-bert/corpus/manifest.json").is_file()


def test_the_vocabulary_and_the_model_that_the_config_names_are_uploaded(pod):
  (pod.checkout / "mine").mkdir()
  (pod.checkout / "mine/vocab.txt").write_text("[PAD]\n")
  (pod.checkout / "model").mkdir()
  (pod.checkout / "model/config.json").write_text("{}")
  pod.write_settings(
    OVERRIDES="(--config.corpus.vocab_file=mine/vocab.txt --init=model)"
  )
  done = pod("up")
  assert done.returncode == 0, done.stdout
  inputs = pod.workdir / "inputs"
  assert (inputs / "vocab.txt").read_text() == "[PAD]\n"
  assert (inputs / "init/config.json").is_file()
  _assert_finished(pod, done.stdout)  # the stub refuses to train without


@pytest.mark.parametrize(
  "which", ["pod", pytest.param("group_pod", marks=pytest.mark.slow)]
)
def test_up_brings_a_preempted_slice_back_and_goes_on(request, which):
  pod = request.getfixturevalue(which)
  go_on = _hold_at(pod, 12)
  up = pod.start("up")
  pod.wait_for(lambda: pod.steps() == [5, 10])
  pod.cloud.preempt()
  go_on()
  assert up.wait(60) == 0, pod.output
  assert "taken away" in pod.output
  _assert_finished(pod, pod.output)
  texts = [p.read_text() for p in pod.workdir.glob("slices/*/*.log")]
  assert any("continuing after step 10" in text for text in texts)


def test_quota_is_waited_for(pod):
  quota = "ERROR: RESOURCE_EXHAUSTED: Quota limit exceeded"
  pod.fault("create my-bert", 2, quota)
  done = pod("up")
  assert done.returncode == 0, done.stdout
  assert "no slice yet: ERROR: RESOURCE_EXHAUSTED" in done.stdout
  _assert_finished(pod, done.stdout)


def test_a_request_that_is_refused_is_tried_three_times(pod):
  denied = "ERROR: PERMISSION_DENIED: tpu.nodes.create denied"
  pod.fault("create my-bert", 9, denied)
  done = pod("up")
  assert done.returncode == 1
  assert done.stdout.count("tpu.nodes.create denied (failure") == 3
  assert len(pod.calls("create my-bert")) == 3
  assert "costs" not in done.stdout.split("giving up")[1]


def test_without_a_login_up_says_so_and_ends(pod):
  """What gcloud prints, of which the last line is advice."""
  advice = (
    "ERROR: (gcloud) You do not currently have an active account selected.\n"
    "Please run:\n\n  $ gcloud auth login\n\nto select an account to use."
  )
  pod.fault("user ", 99, advice)
  done = pod("up")
  assert done.returncode == 2
  assert "have an active account selected.; expected" in done.stdout
  assert "gcloud auth login" in done.stdout and done.stdout.count("\n") == 1


def test_a_network_that_is_gone_proves_nothing(pod):
  """Neither that the slice is absent, nor that it was deleted."""
  go_on = _hold_at(pod, 8)
  up = pod.start("up")
  pod.wait_for(lambda: "step 8/20" in pod.output)
  pod.fault("describe my-bert", 3, "ERROR: Unable to connect to the server")
  pod.wait_for(lambda: "unknown (ERROR: Unable to connect" in pod.output)
  go_on()
  assert up.wait(60) == 0, pod.output
  assert len(pod.calls("resources create")) == 1
  _assert_finished(pod, pod.output)


@pytest.mark.slow
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
  assert kills >= 2
  _assert_finished(pod, pod.output)
  assert len(pod.calls("resources create")) <= 1 + pod.output.count("lost")


def test_a_second_up_is_refused(pod):
  go_on = _hold_at(pod, 8)
  up = pod.start("up")
  pod.wait_for(lambda: "step 8/20" in pod.output)
  second = pod("up")
  assert second.returncode == 2
  assert f"already, as process {up.pid}" in second.stdout
  go_on()
  assert up.wait(60) == 0, pod.output


def test_training_that_fails_again_and_again_is_given_up(pod):
  (pod.cloud.folder / "fail_at_3").write_text("1")
  done = pod("up")
  assert done.returncode == 1
  assert "3 of 3 times without a new checkpoint" in done.stdout
  assert "it broke at step 3" in done.stdout
  assert pod.costing() == []
  assert any(pod.workdir.glob("slices/*/worker-0.log"))


@pytest.mark.slow
def test_training_that_gets_further_each_time_is_not_given_up(pod):
  """Four crashes, each after a new checkpoint."""
  for step in (6, 11, 16, 19):
    (pod.cloud.folder / f"fail_at_{step}").write_text("1")
  up = pod.start("up")
  log = pod.workdir / "slices"
  for step in (6, 11, 16, 19):
    pod.wait_for(
      lambda s=step: any(
        f"it broke at step {s}" in p.read_text() for p in log.glob("*/*.log")
      )
    )
    (pod.cloud.folder / f"fail_at_{step}").unlink()
  assert up.wait(60) == 0, pod.output
  _assert_finished(pod, pod.output)


def test_a_mistake_in_the_settings_is_not_tried_again(pod):
  """Training's exit status 2."""
  (pod.cloud.folder / "fail_at_1").write_text("2")
  done = pod("up")
  assert done.returncode == 1
  assert "with status 2" in done.stdout and "(2 of 3" not in done.stdout
  assert pod.costing() == []


def test_a_setup_that_fails_is_tried_again_and_then_named(pod):
  (pod.cloud.folder / "pip_fails").touch()
  done = pod("up")
  assert done.returncode == 1
  assert "last=pip: no network" in done.stdout
  assert pod.costing() == []
  (log,) = pod.workdir.glob("slices/*/worker-0.log")
  assert log.read_text().count("pip: no network") == 3


def test_a_lockfile_of_a_killed_process_is_removed(pod):
  go_on = _hold_at(pod, 8)
  up = pod.start("up")
  pod.wait_for(lambda: "step 8/20" in pod.output)
  (home,) = pod.cloud.folder.glob("machines/my-bert/*/0")
  (home / "tmp/libtpu_lockfile").touch()
  (pod.cloud.folder / "fail_at_9").write_text("1")
  go_on()
  pod.wait_for(lambda: not (home / "tmp/libtpu_lockfile").exists())
  (pod.cloud.folder / "fail_at_9").unlink()
  assert up.wait(60) == 0, pod.output


def test_stop_saves_deletes_and_up_goes_on_from_there(pod):
  go_on = _hold_at(pod, 8)
  up = pod.start("up")
  pod.wait_for(lambda: "step 8/20" in pod.output)
  done = pod("stop")
  assert done.returncode == 0, done.stdout
  assert up.wait(30) == 1
  assert "stop was asked for" in pod.output
  assert pod.steps() == [5, 8]
  assert pod.costing() == []
  go_on()
  done = pod("up")
  assert done.returncode == 0, done.stdout
  _assert_finished(pod, done.stdout)


def test_a_checkpoint_that_is_not_whole_is_never_the_newest(pod):
  (pod.workdir / "checkpoints/7").mkdir(parents=True)
  (pod.workdir / "checkpoints/7/manifest").touch()
  assert "step 0 of 20" in pod("status").stdout
  assert "no whole checkpoint" in pod("collect").stdout
  assert pod("up").returncode == 0
  shutil.rmtree(pod.checkout / "runs/my-bert")
  (pod.workdir / "checkpoints/30").mkdir()
  assert "step 20 is in runs/my-bert" in pod("collect").stdout


def test_an_unpinned_account_of_another_terminal_does_not_slip_in(pod):
  pod.write_settings(ACCOUNT="me@example.com")
  script = pod.checkout / "gcloud"
  script.write_text(
    'echo "$CLOUDSDK_CORE_ACCOUNT $CLOUDSDK_CORE_PROJECT" >&2\nexit 1\n'
  )
  script.chmod(0o755)
  pod.environment["PATH"] = f"{pod.checkout}:{pod.environment['PATH']}"
  assert "me@example.com some-project" in pod("up").stdout


def test_collected_settings_find_the_corpus_here(pod):
  assert pod("up").returncode == 0
  config = json.loads((pod.checkout / "runs/my-bert/config.json").read_text())
  assert (pod.checkout / config["corpus"]["dir"] / "manifest.json").is_file()
