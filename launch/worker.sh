# What each machine of a slice runs: Google starts this as root at every boot,
# with the settings that pod_slice.sh writes in front of it.
#
# It needs no other computer: the machine installs, trains, reports to the
# bucket and deletes the slice when the run is finished, can't go on, or its
# time is over. Three systemd units: bert-guard (the deadline), bert (setup and the
# loop below), bert-train (Python, which gets SIGTERM and saves).
# shellcheck shell=bash disable=SC2154  # the settings written in front
set -euo pipefail
export HOME="${HOME:-/root}" PATH="$PATH:/snap/bin"
mkdir -p /var/lib/bert
cd /var/lib/bert
reports="$workdir/slices/$slice"

# A boot that is not the first, such as after maintenance, moves no deadline.
boot() {
  local deadline seconds
  [[ "$0" -ef worker.sh ]] || cp "$0" worker.sh
  [[ -s first_boot ]] || date +%s >first_boot
  deadline=$(($(cat first_boot) + allowed_seconds))
  seconds=$(((deadline < latest ? deadline : latest) - $(date +%s)))
  unit bert-guard --on-active="$((seconds > 1 ? seconds : 1))s" \
    --timer-property=AccuracySec=1s bash worker.sh end_at_deadline
  curl -sf -H 'Metadata-Flavor: Google' >worker \
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number ||
    hostname >worker
  unit bert bash worker.sh work
}

# unit NAME FLAGS COMMAND: runs it as a systemd unit, which outlives the caller.
unit() {
  local name="$1"
  shift
  systemd-run --quiet --collect --unit="$name" --working-directory="$PWD" \
    --setenv=HOME="$HOME" --setenv=PATH="$PATH" \
    --property=KillMode=mixed --property=TimeoutStopSec=300 \
    --property=LimitMEMLOCK=infinity \
    --property=StandardOutput=append:"$PWD/log" \
    --property=StandardError=append:"$PWD/log" "$@"
}

work() {
  local phase=failed tries=0
  try_guard
  echo setup >phase
  while report; do
    obey_mark
    grep -q armed guard || try_guard # the right may be granted meanwhile
    sleep "$report_seconds"
  done &
  until bash worker.sh setup; do
    tries=$((tries + 1))
    ((tries < 3)) || end failed
    sleep "$report_seconds"
  done
  train
  end "$phase"
}

# Whether the slice may delete itself is seen by deleting one that is not there:
# Google looks for the right first.
try_guard() {
  local answer
  answer=$(gcloud "${try_command[@]}" 2>&1) || true
  if grep -qi 'was not found' <<<"$answer"; then
    echo armed >guard
  elif [[ ! -s guard ]]; then
    echo refused >guard
    printf 'guard: this machine may not delete the slice: %s\n' "$answer"
  fi
}

last_line() {
  tail -c 400 log | tr '\r' '\n' | grep . | tail -n 1
}

# report: a line about this machine, and its log, into the bucket. One at a
# time, or an older line could arrive last.
report() {
  local worker
  worker=$(cat worker)
  exec 9>report.lock
  flock -w 60 9 || true # a command that hangs must not keep the slice
  printf 'worker %s: guard=%s at=%s phase=%s last=%s\n' "$worker" \
    "$(cat guard)" "$(date +%s)" "$(cat phase)" "$(last_line)" >report
  gcloud storage cp log "$reports/worker-$worker.log" >/dev/null 2>&1 || true
  gcloud storage cp report "$reports/worker-$worker.report" >/dev/null 2>&1 || true
  exec 9>&-
}

# obey_mark: `pod.sh stop` and `delete` leave a mark in the bucket.
obey_mark() {
  if gcloud storage ls "$workdir/mark" >/dev/null 2>&1; then
    touch stopped
    systemctl stop bert-train || true
  fi
}

setup() {
  gcloud storage cp "$workdir/code/$code.tar.gz" code.tar.gz
  rm -rf bert_jax configs launch
  tar -xzf code.tar.gz
  mkdir -p "$corpus" inputs
  gcloud storage rsync --recursive "$workdir/corpus" "$corpus"
  # Only what is missing may fail: without it training says what it lacks.
  gcloud storage rsync --recursive "$workdir/inputs" inputs 2>/dev/null || true
  # The versions of the run's first slice, so that later ones get the same.
  if gcloud storage cp "$workdir/constraints.txt" . 2>/dev/null; then
    export PIP_CONSTRAINT="$PWD/constraints.txt"
  fi
  # The system's Python is 3.10, on which pip would find only an old jax.
  python3 -m pip --version || { apt-get update &&
    apt-get -o DPkg::Lock::Timeout=600 install -y python3-pip; }
  python3 -m pip install --quiet uv==0.13.9
  # Without this stamp an earlier setup was cut off in the middle.
  [[ -f .venv/installed-tpu ]] || rm -rf .venv
  [[ -d .venv ]] || python3 -m uv venv --quiet --python 3.12 --seed .venv
  bash launch/install.sh tpu
  [[ "$(cat worker)" == 0 ]] || exit 0
  # On the CPU: the chips of a slice answer to all of its machines or to none.
  JAX_PLATFORMS=cpu .venv/bin/python -m bert_jax.preflight --workdir="$workdir"
  if [[ ! -f constraints.txt ]]; then
    .venv/bin/python -m pip freeze --exclude-editable |
      grep -E '^[A-Za-z0-9._-]+==' >versions.txt
    gcloud storage cp versions.txt "$workdir/constraints.txt"
  fi
}

# train: sets phase to how it ended. A crash is tried again from the newest
# checkpoint; three without a new one, or a mistake in the settings, end it.
train() {
  local failures=0 best=0 step status last
  while [[ ! -f stopped ]]; do
    echo training >phase
    # Left behind by a process that was killed, it says the chips are in use.
    rm -f /tmp/libtpu_lockfile
    status=0
    # A stalled read from the bucket is given up and tried again.
    unit bert-train --wait --setenv=PYTHONUNBUFFERED=1 \
      --setenv=TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS=60 \
      .venv/bin/python -m bert_jax.train --workdir="$workdir" \
      "${train_flags[@]}" || status=$?
    last=$(last_line)
    step=$(gcloud storage ls "$workdir/checkpoints/*/commit_success.txt" \
      2>/dev/null | grep -oE '[0-9]+/commit' | sort -n | tail -n 1 |
      grep -oE '[0-9]+') || step="$best"
    if ((step >= steps)); then
      phase=finished
      return
    fi
    failures=$((step > best ? 1 : failures + 1)) best="$step"
    echo "worker: training ended with status $status after step $step" \
      "($failures of 3 times without a new checkpoint): $last"
    if ((status == 2 || failures >= 3)); then return; fi
    sleep "$report_seconds"
  done
  phase=stopped
}

end_at_deadline() {
  systemctl stop bert || true # or it would train again
  systemctl stop bert-train || true
  end deadline
}

# end PHASE: deletes the slice, the first machine first: the others may still
# be about to save what it waits for.
end() {
  echo "$1" >phase
  report
  [[ "$(cat worker)" == 0 ]] ||
    sleep "$report_seconds" "$report_seconds" "$report_seconds"
  until gcloud "${delete_command[@]}"; do
    report
    sleep "$report_seconds"
  done
}

"${@:-boot}"
