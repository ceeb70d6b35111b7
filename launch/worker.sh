#!/usr/bin/env bash
# Runs on every worker of a slice, in the home folder's bert/; pod.sh calls it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/pod_storage.sh
source launch/pod_storage.sh

run() {
  "$@"
}

# setup WORKDIR: Python, packages, the corpus; prints the versions.
setup() {
  exec 8>setup.lock
  flock 8 # a setup whose ssh was cut off may still be at work
  rm -f setup.stamp
  if storage_exists "$1/constraints.txt"; then
    storage_copy "$1/constraints.txt" .
    export PIP_CONSTRAINT="$PWD/constraints.txt"
  fi
  install
  storage_sync "$1/corpus" corpus
  print_versions
}

# accept STAMP: setup is done, here and on the other workers.
accept() {
  echo "$1" >setup.stamp
}

# The system's Python is 3.10, on which pip would find only an old jax.
install() {
  export PATH="$HOME/.local/bin:$PATH"
  if ! command -v uv >/dev/null; then
    python3 -m pip install --quiet --user uv ||
      curl -LsSf https://astral.sh/uv/install.sh | sh
  fi
  # Without this stamp an earlier setup was cut off in the middle.
  [[ -f .venv/installed-tpu ]] || rm -rf .venv
  [[ -d .venv ]] || uv venv --quiet --python 3.12 --seed .venv
  bash launch/install.sh tpu
}

print_versions() {
  .venv/bin/python - <<'END'
import importlib.metadata
import sys

packages = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint")
found = {name: importlib.metadata.version(name) for name in packages}
python = ".".join(map(str, sys.version_info[:3]))
print("versions python", python, *(f"{k} {v}" for k, v in found.items()))
jax = tuple(map(int, found["jax"].split(".")[:2]))
if not (3, 11) <= sys.version_info[:2] <= (3, 13) or jax < (0, 10):
  sys.exit("error: expected Python 3.11 to 3.13 and jax 0.10 or newer")
END
}

# keep_versions WORKDIR: so that a later slice of the run gets the same ones.
keep_versions() {
  .venv/bin/python -m pip freeze --exclude-editable |
    grep -E '^[A-Za-z0-9._-]+==' >constraints.txt
  storage_copy constraints.txt "$1"
}

# Prints one line about setup, the training's unit, its end and its log.
state() {
  local unit=inactive
  case "$(systemctl is-active bert 2>/dev/null)" in
    active | activating | deactivating) unit=active ;;
  esac
  echo "setup=$(cat setup.stamp 2>/dev/null || echo none) unit=$unit" \
    "ended=$(cat ended 2>/dev/null || echo none)" \
    "last=$(tail -n 1 train.log 2>/dev/null | tail -c 300 | tr '\r' '\n' |
      tail -n 1)"
}

# start WORKER WORKDIR ARGUMENTS: trains as a unit of its own, which outlives
# this ssh and gets SIGTERM when the machine is taken away.
start() {
  local worker="$1" workdir="$2" log
  shift 2
  if [[ "$(state)" == *" unit=active "* ]]; then
    echo "training runs already"
    return
  fi
  free_chips
  rm -f ended
  mkdir -p logs
  log="$PWD/logs/$(date -u +%Y%m%dT%H%M%SZ)-worker-$worker.log"
  : >"$log"
  ln -sfn "$log" train.log
  # A stalled read from the bucket is given up and tried again.
  sudo systemd-run --quiet --collect --unit=bert \
    --uid="$(id -u)" --gid="$(id -g)" --working-directory="$PWD" \
    --setenv=HOME="$HOME" --setenv=PATH="$PATH" \
    --setenv=PYTHONUNBUFFERED=1 \
    --setenv=TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS=60 \
    --property=KillSignal=SIGTERM --property=KillMode=mixed \
    --property=TimeoutStopSec=300 \
    --property=StandardOutput=append:"$log" \
    --property=StandardError=append:"$log" \
    bash "$PWD/launch/worker.sh" train "$log" "$workdir" "$@"
  echo "training started"
}

# A process that was killed leaves libtpu's lockfile, and the next one would
# be told that the chips are in use.
free_chips() {
  local holders devices
  mapfile -t devices < <(compgen -G '/dev/accel*' || true
    compgen -G '/dev/vfio/*' || true)
  if ((${#devices[@]})); then
    holders=$(sudo lsof -t "${devices[@]}" 2>/dev/null | sort -u | xargs) || true
    if [[ "$holders" ]]; then
      echo "error: the chips are in use by process $holders; expected none" \
        "(end it, then train again)" >&2
      return 1
    fi
  fi
  sudo rm -f "${TMPDIR:-/tmp}/libtpu_lockfile"
}

# train LOG WORKDIR ARGUMENTS: the unit; passes SIGTERM on and keeps the log
# and the exit status.
train() {
  local log="$1" workdir="$2" child status keeper
  shift 2
  # A session of its own: nobody but the trap below signals it.
  setsid .venv/bin/python -m bert_jax.train "--workdir=$workdir" "$@" &
  child=$!
  trap 'kill -TERM "$child" 2>/dev/null' TERM INT
  keep_log "$log" "$workdir" &
  keeper=$!
  while true; do
    status=0
    wait "$child" || status=$?
    # `wait` also ends when the trap has run.
    kill -0 "$child" 2>/dev/null || break
  done
  echo "$status" >ended.tmp
  mv ended.tmp ended
  kill "$keeper" 2>/dev/null || true
  storage_copy "$log" "$workdir/logs" >/dev/null 2>&1 || true
  return "$status"
}

# The machine's disk goes with it.
keep_log() {
  while sleep 60; do
    storage_copy "$1" "$2/logs" >/dev/null 2>&1 || true
  done
}

# Ends training; it saves first.
stop() {
  sudo systemctl stop bert 2>/dev/null || true
}

# guard SECONDS COMMAND: has this machine end training and delete the slice
# when the budget is used up, in case nobody does it from outside.
guard() {
  sudo systemctl stop bert-guard 2>/dev/null || true
  sudo systemd-run --quiet --collect --unit=bert-guard \
    --working-directory="$PWD" \
    bash "$PWD/launch/worker.sh" delete_after "$@"
}

delete_after() {
  local seconds="$1"
  shift
  sleep "$seconds" & # so that SIGTERM is heard at once
  wait $!
  stop
  until "$@"; do sleep 60; done
}

"$@"
