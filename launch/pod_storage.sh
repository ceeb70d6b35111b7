# Files of a run, in a bucket (gs://) or in a folder that all machines share.
# Used here and on the workers, which source this too.
# shellcheck shell=bash
# shellcheck disable=SC2154  # python, dry_run, state_dir: set by pod.sh

# storage_exists FILE
storage_exists() {
  case "$1" in
    gs://*) gcloud storage ls "$1" >/dev/null 2>&1 ;;
    *) [[ -e "$1" ]] ;;
  esac
}

# storage_list FOLDER: prints the names in it; nothing where there is none.
storage_list() {
  case "$1" in
    gs://*) gcloud storage ls "$1/" 2>/dev/null | sed 's|/*$||; s|.*/||' ;;
    *) ls "$1" 2>/dev/null ;;
  esac || true
}

# storage_copy SOURCE FOLDER: copies a file or folder into a folder.
storage_copy() {
  make_folder "$2" || return
  case "$1 $2" in
    *gs://*) run gcloud storage cp --recursive "$1" "${2%/}/" ;;
    *) run cp -R "$1" "${2%/}/" ;;
  esac
}

# storage_sync SOURCE FOLDER: makes a folder hold what another one holds.
storage_sync() {
  make_folder "$2" || return
  case "$1 $2" in
    *gs://*) run gcloud storage rsync --recursive "$1" "$2" ;;
    *) run cp -R "$1/." "$2/" ;;
  esac
}

# A bucket has no folders to make.
make_folder() {
  [[ "$1" == gs://* ]] || run mkdir -p "$1"
}

# newest_step: prints the newest checkpoint's step, 0 where there is none.
newest_step() {
  local newest
  if "$dry_run"; then
    show gcloud storage ls "$WORKDIR/checkpoints/"
    echo NEWEST
    return
  fi
  newest=$(storage_list "$WORKDIR/checkpoints" | grep -xE '[0-9]+' | sort -n |
    tail -n 1) || true
  echo "${newest:-0}"
}

# run_is_finished STEPS: THE sign that a run is finished: the checkpoint of its
# last step, which is whole once orbax has written this file into it. A log
# line or an exit status would not outlive the machines.
run_is_finished() {
  storage_exists "$WORKDIR/checkpoints/$1/commit_success.txt"
}
