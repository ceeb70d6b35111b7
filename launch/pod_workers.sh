# Commands to all workers of a slice: setup, train, stop.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # shared with the other files

workers_at_once=8 # more handshakes at a time get some of them refused

# What a worker says of itself, also before setup.
state_command='if [ -f bert/launch/worker.sh ];'
state_command+=' then bash bert/launch/worker.sh state;'
state_command+=' else echo "setup=none unit=inactive ended=none last="; fi'

# on_workers COMMAND: runs it on every worker, {worker} in it being the
# worker's name; the answers are in $state_dir/answers/WORKER.out and .err.
# Fails, naming the workers, where one of them failed.
on_workers() {
  local answers="$state_dir/answers" worker workers asked=0 failed=()
  workers=$(slice_workers) || return
  if "$dry_run"; then
    for worker in $workers; do
      slice_ssh "$worker" "${1//\{worker\}/$worker}"
    done
    return
  fi
  rm -rf "$answers"
  mkdir -p "$answers"
  for worker in $workers; do
    ask_worker "$worker" "${1//\{worker\}/$worker}" &
    asked=$((asked + 1))
    if ((asked % workers_at_once == 0)); then wait; fi
  done
  wait
  for worker in $workers; do
    [[ "$(cat "$answers/$worker.status" 2>/dev/null)" == 0 ]] || {
      failed+=("$worker")
      say "worker $worker: failed: $(error_line "$answers/$worker.err")"
    }
  done
  ((${#failed[@]} == 0))
}

# ask_worker WORKER COMMAND: ssh's own failures (255) are tried again.
ask_worker() {
  local try status answer="$state_dir/answers/$1"
  for try in 1 2 3; do
    status=0
    slice_ssh "$1" "$2" >"$answer.out" 2>"$answer.err" || status=$?
    [[ "$status" == 255 && "$try" -lt 3 ]] || break
    say "worker $1: ssh failed, trying again: $(error_line "$answer.err")"
    pause "$(calculate "$POLL_SECONDS / 3 * $try")"
  done
  echo "$status" >"$answer.status"
}

# Prints what the workers answered, a name before each line.
print_answers() {
  local answer
  for answer in $(list_answers); do
    sed "s/^/worker $(basename "$answer" .out): /" "$answer"
  done
}

list_answers() {
  find "$state_dir/answers" -name '*.out' 2>/dev/null | sort -V
}

# pack: makes the archive of the checkout's code, the same bytes for the same
# code, and sets $stamp.
pack() {
  local archive="$state_dir/bert_jax.tar.gz"
  run tar --create --gzip --file "$archive" --sort=name --mtime=@0 \
    --owner=0 --group=0 --numeric-owner --exclude=__pycache__ \
    --exclude=launch/settings.sh --exclude='*.egg-info' \
    bert_jax configs launch setup.py README.md
  stamp=dry-run
  "$dry_run" || stamp=$(tar -xzOf "$archive" | sha256sum | cut -c 1-16)
}

setup() {
  pack
  say "setup: code, packages and corpus on $HOSTS workers; takes minutes"
  slice_scp "$state_dir/bert_jax.tar.gz" || return
  on_workers "$(remote_setup)" || return
  check_same_versions || return
  on_workers "bash bert/launch/worker.sh accept $stamp" || return
  if "$dry_run" || ! storage_exists "$WORKDIR/constraints.txt"; then
    slice_ssh "$(first_worker)" \
      "bash bert/launch/worker.sh keep_versions ${WORKDIR@Q}" || return
  fi
  arm_guard
  say "setup: done on all $HOSTS workers: $versions"
}

first_worker() {
  local workers
  workers=$(slice_workers) || return
  echo "${workers%%$'\n'*}"
}

# Code under a running training is not exchanged.
remote_setup() {
  echo "if systemctl is-active --quiet bert;" \
    "then echo training runs, stop it first >&2; exit 1; fi &&" \
    "mkdir -p bert && rm -rf bert/bert_jax bert/configs bert/launch &&" \
    "tar -xzf bert_jax.tar.gz -C bert &&" \
    "bash bert/launch/worker.sh setup ${WORKDIR@Q}"
}

# check_same_versions: sets $versions; names the workers that differ.
check_same_versions() {
  local answer found status=0
  versions=
  for answer in $(list_answers); do
    found=$(grep ^versions "$answer") || found="none"
    : "${versions:=$found}"
    if [[ "$found" != "$versions" || "$found" == none ]]; then
      say "worker $(basename "$answer" .out): has $found; expected" \
        "$versions, as the first worker (delete the slice and create it again)"
      status=1
    fi
  done
  return "$status"
}

train() {
  say "train: starting on $HOSTS workers, into $WORKDIR"
  on_workers "bash bert/launch/worker.sh start {worker} ${WORKDIR@Q} \
$(train_arguments)" || return
  arm_guard
}

train_arguments() {
  local arguments=("--config=$CONFIG" --config.corpus.dir=corpus
    "${OVERRIDES[@]}")
  echo "${arguments[*]@Q}"
}

# The first worker deletes the slice ten minutes after the budget is used up,
# in case that this computer sleeps then.
arm_guard() {
  local command seconds
  seconds=$(($(seconds_left) + 600))
  if ((seconds < 1)); then seconds=1; fi
  command=$(dry_run=true && slice_delete 3>&1)
  slice_ssh "$(first_worker)" \
    "bash bert/launch/worker.sh guard $seconds ${command%%$'\n'*}" ||
    say "train: no guard on the slice; keep this computer on until the end"
}

stop() {
  say "stop: training is told to save and end"
  on_workers 'bash bert/launch/worker.sh stop'
}
