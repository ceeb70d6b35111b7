#!/usr/bin/env bash
# Trains on a TPU slice of Google Cloud; launch/README.md is the guide.
#
#   bash launch/pod.sh COMMAND [--settings=FILE] [--dry-run]
#
# up       does all of it until the run is finished, then deletes the slice
# create   asks for the slice, which costs money once it is there
# setup    installs code, packages and the corpus on every worker
# train    starts training on every worker, or goes on with it
# stop     ends training, which saves first; the slice stays and costs
# status   what is there, how far training is, what was spent
# logs     the end of every worker's log
# watch    worker 0's log as it grows
# collect  copies the run from the bucket to runs/NAME and exports the model
# delete   deletes the slice, all that costs by the hour
#
# --settings=FILE is launch/settings.sh unless given; --dry-run prints every
# command and runs none. PYTHON is the interpreter here (.venv/bin/python).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/pod_settings.sh
source launch/pod_settings.sh
# shellcheck source=launch/pod_storage.sh
source launch/pod_storage.sh
# shellcheck source=launch/pod_money.sh
source launch/pod_money.sh
# shellcheck source=launch/pod_workers.sh
source launch/pod_workers.sh
# shellcheck source=launch/pod_up.sh
source launch/pod_up.sh
exec 3>&1 # where --dry-run prints, whatever is done with the output
dry_run=false
python="${PYTHON:-.venv/bin/python}"
keep_alive=-oServerAliveInterval=15

# say WORDS: tells and keeps a line.
say() {
  printf '%s\n' "$*" || true # the terminal may be gone
  "$dry_run" || printf '%(%F %T)T %s\n' -1 "$*" >>"$state_dir/pod.log"
}

# fail WORDS: ends with a mistake that the user can mend.
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# run COMMAND: runs it, or prints it.
run() {
  if "$dry_run"; then
    show "$@"
  else
    "$@"
  fi
}

# show COMMAND: prints it so that it can be pasted.
show() {
  local word line=()
  for word in "$@"; do
    [[ "$word" =~ ^[][A-Za-z0-9_./:=,@%+-]+$ ]] || word="${word@Q}"
    line+=("$word")
  done
  printf '%s\n' "${line[*]}" >&3
}

# cloud ARGUMENTS: gcloud, which may hang for $limit seconds at most.
cloud() {
  if "$dry_run"; then
    show gcloud "$@"
  else
    timeout --foreground --kill-after=30 "${limit:-1800}" gcloud "$@" \
      </dev/null
  fi
}

# make_once ARGUMENTS: as `cloud`, content with what is there already.
make_once() {
  local output status=0
  output=$(cloud "$@" 2>&1) || status=$?
  [[ "$status" == 0 || "$output" == *"already exists"* ]] && return
  printf '%s\n' "$output" >&2
  return "$status"
}

# remove_once ARGUMENTS: as `cloud`, content where there is nothing.
remove_once() {
  local errors status=0
  errors=$(mktemp)
  cloud "$@" 2>"$errors" || status=$?
  if [[ "$status" != 0 ]] && is_not_found "$errors"; then status=0; fi
  [[ "$status" == 0 ]] || cat "$errors" >&2
  rm -f "$errors"
  return "$status"
}

is_not_found() {
  grep -qiE 'not[ _]found' "$1"
}

# error_line FILE: prints the line with an error, else the last one.
error_line() {
  { grep -m 1 ERROR "$1" || grep -v '^[[:space:]]*$' "$1" | tail -n 1; } |
    cut -c 1-300
}

# look: sets slice_kind and slice_word and keeps the ledger. Kinds:
#   absent    there is none                 empty    a group without machines
#   queued    waiting, costs nothing        starting costs, can't be used yet
#   ready     can be used                   lost     taken away, or failed
#   leaving   being deleted                 unknown  gcloud did not say
look() {
  if "$dry_run"; then
    slice_state >/dev/null
    slice_kind=ready slice_word="dry run"
    return
  fi
  read -r slice_kind slice_word < <(slice_state)
  keep_ledger "$slice_kind"
}

create() {
  upload_corpus
  "$dry_run" || date +%s >"$state_dir/queued"
  slice_create
  say "create: asked for $ACCELERATOR_TYPE; once it is there it costs" \
    "$(two_digits "$HOURLY_PRICE") an hour until bash launch/pod.sh delete"
}

# The chips shall not wait for text: token ids are made here and kept beside
# the run, from where every worker takes them.
upload_corpus() {
  say "create: token ids in $CORPUS go to $WORKDIR/corpus"
  run "$python" -m bert_jax.prepare "--config=$CONFIG" \
    "--workdir=$state_dir/prepared" "--config.corpus.dir=$CORPUS" \
    "${OVERRIDES[@]}"
  storage_sync "$CORPUS" "$WORKDIR/corpus"
}

count_steps() {
  "$python" launch/num_steps.py "--config=$CONFIG" "${OVERRIDES[@]}"
}

status() {
  local steps
  look
  say "status: slice $NAME: $slice_kind ($slice_word)"
  if [[ "$slice_kind" == ready ]]; then
    on_workers "$state_command" || true
    print_answers
  fi
  "$dry_run" && return
  steps=$(count_steps) || exit
  if run_is_finished "$steps"; then
    say "status: all $steps steps are done"
  else
    say "status: newest checkpoint in $WORKDIR: step $(newest_step) of $steps"
  fi
  say "status: $(spent) spent of the budget of $BUDGET, by this computer's" \
    "book; a slice costs $(two_digits "$HOURLY_PRICE") an hour"
}

logs() {
  look
  if [[ "$slice_kind" == ready ]]; then
    on_workers 'tail -n 40 bert/train.log' || true
    print_answers
  else
    say "logs: the slice is $slice_kind; these are the last of $WORKDIR/logs"
    storage_sync "$WORKDIR/logs" "$state_dir/logs"
    "$dry_run" && return
    find "$state_dir/logs" -name '*-worker-*.log' | sort | tail -n "$HOSTS" |
      xargs -r tail -n 40
  fi
}

watch() {
  limit=0 slice_ssh "$(first_worker)" 'tail -n 20 -F bert/train.log'
}

# Everything that counts lies in the bucket: this needs no slice.
collect() {
  local folder="runs/$NAME" name step
  step=$(newest_step)
  if [[ "$step" == 0 ]]; then
    say "collect: $WORKDIR has no checkpoint yet"
    return
  fi
  for name in config.json vocab.txt metrics.jsonl; do
    storage_copy "$WORKDIR/$name" "$folder" || return
  done
  storage_copy "$WORKDIR/logs" "$folder" || say "collect: there are no logs"
  storage_copy "$WORKDIR/checkpoints/$step" "$folder/checkpoints" || return
  point_to_corpus "$folder/config.json"
  run "$python" -m bert_jax.export "--workdir=$folder" \
    "--output=$folder/export" || return
  say "collect: step $step is in $folder; transformers loads $folder/export"
}

# The run's settings say where its workers had the corpus.
point_to_corpus() {
  run "$python" -c '
import json, pathlib, sys
path, corpus = map(pathlib.Path, sys.argv[1:])
config = json.loads(path.read_text())
config["corpus"]["dir"] = str(corpus)
path.write_text(json.dumps(config, indent=2) + "\n")
' "$1" "$CORPUS"
}

# Deletes until there is nothing left, however often that fails.
delete() {
  local tries=0
  say "delete: the slice $NAME"
  while true; do
    slice_delete || true
    "$dry_run" && return
    look
    [[ "$slice_kind" != absent ]] || break
    tries=$((tries + 1))
    say "delete: $NAME is still $slice_kind ($slice_word); it may cost" \
      "$(two_digits "$HOURLY_PRICE") an hour; trying again (Ctrl-C ends this)"
    back_off "$tries"
  done
  say "delete: the slice is gone; it costs nothing any more. $(spent) spent." \
    "The bucket keeps $WORKDIR."
}

# back_off TRIES: waits twice as long after each failure, half an hour at most.
back_off() {
  local times=$((2 ** ($1 < 6 ? $1 : 6)))
  pause "$(calculate "$POLL_SECONDS * $times")"
}

# pause SECONDS: so that a signal is heard at once.
pause() {
  sleep "$1" >/dev/null 2>&1 3>&- &
  wait $!
}

check_tools() {
  # In a long loop the project and account of another terminal's gcloud must
  # not slip in, and nothing may wait for an answer.
  export CLOUDSDK_CORE_PROJECT="$PROJECT" CLOUDSDK_CORE_DISABLE_PROMPTS=1
  if [[ "$ACCOUNT" ]]; then export CLOUDSDK_CORE_ACCOUNT="$ACCOUNT"; fi
  "$dry_run" && return
  command -v gcloud >/dev/null || fail "gcloud is not on PATH; expected" \
    "Google Cloud's command line (see launch/README.md)"
  command -v "$python" >/dev/null || fail "$python is not there; expected the" \
    "installation of this checkout (bash launch/install.sh tpu)"
}

usage() {
  sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p}' launch/pod.sh
}

main() {
  ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) ||
    fail "bash is $BASH_VERSION; expected 4.4 or newer"
  local command="${1:-help}" settings=launch/settings.sh argument
  shift || true
  for argument in "$@"; do
    case "$argument" in
      --settings=?*) settings="${argument#*=}" ;;
      --dry-run) dry_run=true ;;
      *) fail "argument is '$argument'; expected --settings=FILE or --dry-run" ;;
    esac
  done
  case "$command" in
    up | create | setup | train | stop | status | logs | watch | collect | delete) ;;
    help | -h | --help)
      usage
      return
      ;;
    *) fail "command is '$command'; expected up, create, setup, train, stop," \
      "status, logs, watch, collect or delete" ;;
  esac
  load_settings "$settings"
  # shellcheck source=launch/pod_queued_resources.sh
  source "launch/pod_${BACKEND//-/_}.sh"
  state_dir="runs/pod/$NAME"
  "$dry_run" || mkdir -p "$state_dir"
  check_tools
  case "$command" in
    setup | train | stop | watch)
      look
      [[ "$slice_kind" == ready ]] || fail "the slice $NAME is $slice_kind" \
        "($slice_word); expected ready (see bash launch/pod.sh status)"
      ;;
  esac
  "$command"
}

main "$@"
