# The slice, whatever its backend: ask for it, look at it, delete it.
#
# $state_dir/slice says what was asked for: PROJECT ZONE BACKEND
# ACCELERATOR_TYPE SLICE, where SLICE names its folder of reports and logs in
# the bucket. The settings may change; the slice stays where it was asked for.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # settings, dry_run, state_dir: set by the others

# load_slice COMMAND: sets slice and place; other commands than `up` go where
# the slice is, whatever the settings say now.
load_slice() {
  local project zone backend type
  slice=''
  if read -r project zone backend type slice 2>/dev/null <"$state_dir/slice"; then
    if [[ "$1" == up && "$project $zone $backend $type" != \
      "$PROJECT $ZONE $BACKEND $ACCELERATOR_TYPE" ]]; then
      fail "a $type named $NAME was asked for in $zone of $project ($backend);" \
        "expected it deleted before $settings_file asks for another one" \
        "(bash launch/pod.sh delete --settings=$settings_file finds it there)"
    fi
    PROJECT="$project" ZONE="$zone" BACKEND="$backend"
  fi
  place=("--zone=$ZONE" "--project=$PROJECT")
}

# Whether a slice is, or may come to be, there.
is_asked_for() {
  [[ -f "$state_dir/slice" ]]
}

keep_slice() {
  "$dry_run" || echo "$PROJECT $ZONE $BACKEND $ACCELERATOR_TYPE $slice" \
    >"$state_dir/slice"
}

# request_slice: asks for a slice that works, and ends, by itself.
request_slice() {
  local seconds queue_seconds
  seconds=$(seconds_left)
  # Flex-start machines may live for seven days.
  if [[ "$CAPACITY" == flex-start ]] && ((seconds > 604200)); then
    seconds=604200
  fi
  queue_seconds=$(calculate "$QUEUE_HOURS * 3600 + 0.999" | sed 's/\..*//')
  slice=$(date -u +%Y%m%dT%H%M%SZ)
  write_startup_script "$seconds" $((queue_seconds + seconds)) \
    >"$state_dir/startup.sh"
  keep_slice
  limit=600 slice_create "$state_dir/startup.sh" "$seconds"
}

# write_startup_script SECONDS SECONDS_FROM_NOW: worker.sh and what it needs to
# know. Google runs it on each machine of the slice at every boot.
write_startup_script() {
  local words delete
  echo '#!/usr/bin/env bash'
  printf '%s=%q\n' allowed_seconds "$1" latest $(($(date +%s) + $2)) \
    workdir "$WORKDIR" slice "$slice" code "$code" corpus "$CORPUS" \
    steps "$steps" report_seconds "$POLL_SECONDS"
  delete_command "$NAME"
  delete="${words[*]@Q}"
  # The right to delete is asked before it is known whether there is such a
  # thing, so deleting what does not exist tells whether the right is there.
  delete_command "$NAME-no-such-slice"
  printf '%s=(%s)\n' delete_command "$delete" try_command "${words[*]@Q}" \
    train_flags "${train_flags[*]@Q}"
  cat launch/worker.sh
}

# look: sets slice_kind and slice_word and keeps the ledger. Kinds:
#   absent    there is none                 empty    a group without machines
#   queued    waiting, costs nothing        starting costs, can't be used yet
#   ready     can be used                   lost     taken away
#   failed    Google gave it up             leaving  being deleted
#   unknown   gcloud did not say
look() {
  local output errors="$state_dir/look_error" status=0
  output=$(limit=120 slice_state 2>"$errors") || status=$?
  if "$dry_run"; then
    slice_kind=ready slice_word='dry run'
  elif [[ "$status" == 0 ]]; then
    slice_kind=$(kind_of "$output")
    slice_word=$(awk '{ print $NF }' <<<"$output" | sort | uniq -c | xargs |
      sed 's/^1 //')
  elif [[ "$status" == 1 ]] && says_not_found "$errors"; then
    slice_kind=absent slice_word=NOT_FOUND
  else
    slice_kind=unknown slice_word=$(error_line "$errors")
    : "${slice_word:=no answer in two minutes}"
  fi
  # Such as one that another computer asked for.
  if ! is_asked_for && [[ "$slice_kind" =~ queued|starting|ready|lost ]]; then
    slice=$(ask_bucket ls "$WORKDIR/slices/" | sed 's|/*$||; s|.*/||' |
      sort | tail -n 1) || slice=''
    keep_slice
  fi
  "$dry_run" || keep_ledger "$slice_kind"
}

# says_not_found FILE: only Google's own word on this very thing counts.
# "Not found" alone also stands in errors of a shell or of a missing right.
says_not_found() {
  grep -qiE "resource '([^']*/$resource_kind/)?$NAME' was not found" "$1" &&
    ! grep -qiE 'PERMISSION_DENIED|FORBIDDEN|UNAUTHENTICATED|\b40[13]\b' "$1"
}

# delete_slice: deletes until there is nothing left, however often that fails.
delete_slice() {
  local tries=0 words
  say "delete: the slice $NAME in $ZONE"
  delete_command "$NAME"
  while true; do
    limit=600 cloud "${words[@]}" 2>"$state_dir/delete_error" || true
    "$dry_run" && return
    look
    [[ "$slice_kind" != absent ]] || break
    tries=$((tries + 1))
    say "delete: $NAME is still $slice_kind ($slice_word); it may cost" \
      "$(two_digits "$HOURLY_PRICE") an hour; trying again (Ctrl-C ends this):" \
      "$(error_line "$state_dir/delete_error")"
    back_off "$tries"
  done
  slice_remove_rest || true
  rm -f "$state_dir/slice"
  say "delete: the slice is gone; it costs nothing any more. $(spent) spent." \
    "The bucket keeps $WORKDIR."
}

# stop: has the machines save, end and delete the slice; deletes it where they
# do not.
stop() {
  local looks
  set_mark stop
  for ((looks = 0; looks < 20; looks++)); do
    look
    [[ "$slice_kind" =~ ready|unknown ]] || break
    "$dry_run" && break
    pause "$POLL_SECONDS"
  done
  delete_slice
}
