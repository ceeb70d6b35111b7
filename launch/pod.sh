#!/usr/bin/env bash
# Trains on a TPU slice of Google Cloud; launch/README.md is the guide.
#
#   bash launch/pod.sh COMMAND [--settings=FILE] [--dry-run]
#
# up       checks, uploads, rents, follows the run to its end, collects
# status   what is there, how far training is, what was spent
# logs     the end of every machine's log
# stop     has training save and end, then the slice goes
# collect  copies the run from the bucket to runs/NAME and exports the model
# delete   deletes the slice at once, all that costs by the hour
#
# --settings=FILE is launch/settings.sh unless given; --dry-run prints every
# command and runs none. PYTHON is the interpreter here (.venv/bin/python).
# shellcheck disable=SC2154  # the settings and what other files set
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for part in settings bucket money slice checks up; do
  # shellcheck disable=SC1090
  source "launch/pod_$part.sh"
done
exec 3>&1 # where --dry-run prints, whatever is done with the output
dry_run=false
python="${PYTHON:-.venv/bin/python}"

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
  if "$dry_run" && [[ "$1" != cloud ]]; then show "$@"; else "$@"; fi
}

# show COMMAND: prints it so that it can be pasted.
show() {
  local line
  printf -v line '%q ' "${@//"$state_dir"/runs/pod/$NAME}"
  echo "${line% }" >&3
}

# cloud ARGUMENTS: gcloud, which may hang for $limit seconds at most.
cloud() {
  if "$dry_run"; then
    show gcloud "$@"
  else
    timeout --foreground --kill-after=10 "${limit:-300}" gcloud "$@" </dev/null
  fi
}

# error_line FILE: prints the line with an error, else the last one.
error_line() {
  awk '/ERROR/ { error = $0 } NF { last = $0 }
    END { print substr(error ? error : last, 1, 300) }' "$1"
}

status() {
  read_run
  look
  say "status: slice $NAME: $slice_kind ($slice_word)"
  if look_for_step && look_for_reports; then
    [[ -z "$reports" ]] || say "$reports"
    say "status: newest checkpoint in $WORKDIR: step $newest_step of $steps"
  else
    say "status: the bucket does not answer: $(bucket_error)"
  fi
  say "status: $(spent) spent of the budget of $BUDGET, by this computer's" \
    "book; a slice costs $(two_digits "$HOURLY_PRICE") an hour"
}

logs() {
  look
  [[ "$slice" ]] || slice='*'
  limit=120 cloud storage cat --display-url --range=-4000 \
    "$WORKDIR/slices/$slice/*.log"
}

# An `up` that is asking for a slice right now deletes it when it sees the mark.
delete() {
  set_mark delete
  delete_slice
  while ! "$dry_run" && running_up >/dev/null; do
    tell "delete: waiting for the \`up\` that works on $NAME to end"
    pause 1
  done
  look
  [[ "$slice_kind" == absent ]] || "$dry_run" || delete_slice
}

# Everything that counts lies in the bucket: this needs no slice.
collect() {
  local folder="runs/$NAME" name
  look_for_step || return
  if [[ "$newest_step" == 0 ]] && ! "$dry_run"; then
    say "collect: $WORKDIR has no whole checkpoint yet"
    return
  fi
  run mkdir -p "$folder/checkpoints" "$folder/slices"
  for name in config.json vocab.txt metrics.jsonl; do
    cloud storage cp "$WORKDIR/$name" "$folder/$name" || return
  done
  limit=0 cloud storage cp --recursive "$WORKDIR/checkpoints/$newest_step" \
    "$folder/checkpoints/" || return
  limit=0 cloud storage rsync --recursive "$WORKDIR/slices" "$folder/slices" ||
    return
  run "$python" -m bert_jax.export "--workdir=$folder" \
    "--output=$folder/export" || return
  say "collect: step $newest_step is in $folder; transformers loads" \
    "$folder/export"
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
  command -v "$python" >/dev/null || fail "$python is not there; expected the" \
    "installation of this checkout (bash launch/install.sh tpu)"
  "$dry_run" || command -v gcloud >/dev/null || fail "gcloud is not on PATH;" \
    "expected Google Cloud's command line (see launch/README.md)"
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
    up | status | logs | stop | collect | delete) ;;
    help | -h | --help)
      sed -n '3,/runs none/s/^# \{0,1\}//p' launch/pod.sh
      return
      ;;
    *) fail "command is '$command'; expected up, status, logs, stop, collect" \
      "or delete" ;;
  esac
  load_settings "$settings"
  state_dir="runs/pod/$NAME"
  load_slice "$command"
  if "$dry_run"; then
    state_dir=$(mktemp -d)
    trap 'rm -rf "$state_dir"' EXIT
  fi
  mkdir -p "$state_dir"
  # shellcheck source=launch/pod_queued_resources.sh
  source "launch/pod_${BACKEND//-/_}.sh"
  check_tools
  "$command"
}

main "$@"
