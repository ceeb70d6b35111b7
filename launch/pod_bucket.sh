# What the bucket knows of a run: checkpoints, marks, reports of the machines.
#
# Each function fails where the bucket did not answer (no network, no right);
# nothing may be concluded from that.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # dry_run, state_dir, slice: set by the others

# ask_bucket ARGUMENTS: `gcloud storage ARGUMENTS`, prints nothing where there
# are no such objects.
ask_bucket() {
  limit=120 cloud storage "$@" 2>"$state_dir/bucket_error" ||
    grep -q 'matched no objects' "$state_dir/bucket_error"
}

# Prints why the bucket did not answer.
bucket_error() {
  error_line "$state_dir/bucket_error"
}

# look_for_step: sets newest_step, the step of the newest checkpoint that is
# whole: orbax writes this file into it last.
look_for_step() {
  local found
  newest_step=0
  found=$(ask_bucket ls "$WORKDIR/checkpoints/*/commit_success.txt") || return
  found=$(sed -nE 's|.*/([0-9]+)/commit_success.txt$|\1|p' <<<"$found" |
    sort -n | tail -n 1)
  newest_step="${found:-0}"
}

# look_for_reports: sets reports, a line of each machine of the slice.
look_for_reports() {
  reports=''
  [[ "$slice" ]] || return 0
  reports=$(ask_bucket cat "$WORKDIR/slices/$slice/*.report")
}

# set_mark WORD: "stop" or "delete", which every `up` and every machine of the
# run obeys, on whatever computer it was called.
set_mark() {
  "$dry_run" || echo "$1" >"$state_dir/mark"
  run cloud storage cp "$state_dir/mark" "$WORKDIR/mark" ||
    say "$1: the bucket can't be written; an \`up\` on another computer would" \
      "not notice"
}

clear_mark() {
  rm -f "$state_dir/mark"
  [[ -z "$(ask_bucket ls "$WORKDIR/mark")" ]] ||
    cloud storage rm "$WORKDIR/mark"
}

# look_for_mark: sets mark, empty where there is none.
look_for_mark() {
  mark=$(cat "$state_dir/mark" 2>/dev/null) && return
  mark=$(ask_bucket cat "$WORKDIR/mark")
}
