# `up`: brings a run to its end, whatever happens to the slice on the way.
#
# The slice works by itself: its machines install, train, report to the bucket
# and delete the slice at the end. `up` asks for it, asks again after it was
# taken away, and copies the model here. At each turn it looks at the bucket and
# the slice and does what comes next, so it can be killed at any moment and
# started again.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # settings, dry_run, state_dir: set by the others

max_failures=3 # in a row and without a new checkpoint
told='' # what `tell` said last
max_silent_looks=40 # at a slice whose machines do not report

up() {
  if "$dry_run"; then
    dry_up
    return
  fi
  take_turn
  trap tell_what_costs EXIT
  trap 'exit 130' INT TERM HUP
  read_run
  { clear_mark && look_for_step; } ||
    fail "the bucket did not answer: $(bucket_error); expected $WORKDIR to be" \
      "readable and writable (gcloud auth login; BUCKET in $settings_file)"
  ((newest_step >= steps)) || bring_to_end
  say "up: all $steps steps are done; the slice goes first, it costs money"
  delete_slice
  collect || fail "collect failed, but the slice is gone and $WORKDIR holds" \
    "the run; try bash launch/pod.sh collect again"
}

# Every command of a run in which nothing happens.
dry_up() {
  read_run
  look_for_step
  check_before_renting
  upload_all
  request_slice
  look
  delete_slice
  collect
}

# Two of them would delete each other's slices.
take_turn() {
  local other
  if other=$(running_up) && [[ "$other" != "$$" ]]; then
    fail "up works on $NAME already, as process $other; expected one at a time"
  fi
  echo "$$" >"$state_dir/up.pid"
}

# running_up: prints the process of the `up` that works on this run here.
running_up() {
  local pid
  pid=$(cat "$state_dir/up.pid" 2>/dev/null) || return
  grep -qs pod.sh "/proc/$pid/cmdline" && echo "$pid"
}

# However `up` ends, it says what goes on costing money.
tell_what_costs() {
  is_asked_for || return 0
  say "up: ended, but the slice $NAME is or will be there, goes on by itself" \
    "and costs $(two_digits "$HOURLY_PRICE") an hour ($(spent) spent) until" \
    "the run is finished or the budget used up." \
    "To follow it: bash launch/pod.sh up --settings=$settings_file." \
    "To pay no more: bash launch/pod.sh delete --settings=$settings_file"
}

# bring_to_end: returns when the checkpoint of the last step is there.
bring_to_end() {
  local failures=0 silent=0 missing=0 waits=0 before='' seen='' code='' best="$newest_step"
  while true; do
    look_for_mark || tell "up: the bucket does not answer: $(bucket_error)"
    if [[ "$mark" ]]; then end_for_mark; fi
    look
    if is_asked_for && holds "$(spent) >= $BUDGET"; then end_for_budget; fi
    tell "up: slice $NAME: $slice_kind ($slice_word)"
    # Without the bucket's word nothing is done that could not be undone.
    if ! { look_for_step && look_for_reports; }; then
      tell "up: the bucket does not answer: $(bucket_error)"
      pause "$POLL_SECONDS"
      continue
    fi
    if ((newest_step > best)); then failures=0 best="$newest_step"; fi
    ((newest_step < steps)) || return 0
    if [[ "$slice_kind" != absent ]]; then seen="$slice" missing=0; fi
    case "$slice_kind" in
      absent | empty | lost | failed) replace_slice ;;
      ready) follow_training ;;
      unknown)
        is_asked_for || [[ "$code" ]] || fail "gcloud can't look at $NAME in" \
          "$ZONE: $slice_word; nothing was rented"
        pause "$POLL_SECONDS"
        ;;
      *) pause "$POLL_SECONDS" ;;
    esac
  done
}

# tell LINE: says it unless it was said already.
tell() {
  [[ $'\n'"$told"$'\n' == *$'\n'"$1"$'\n'* ]] || say "$1"
  told="$(tail -n 20 <<<"$told")"$'\n'"$1"
}

# replace_slice: there is none, or what is left of one.
replace_slice() {
  end_if_given_up
  silent=0 before=''
  case "$slice_kind" in
    failed) fail_slice "Google gave the request up: $(slice_reason || true)" ;;
    lost)
      say "up: the slice was taken away; deleting what is left of it"
      delete_slice
      ;;
    *)
      # A request may take a moment until Google shows it.
      if is_asked_for && [[ "$seen" != "$slice" ]] && ((missing < 5)); then
        missing=$((missing + 1))
        pause "$POLL_SECONDS"
        return
      fi
      if is_asked_for; then
        say "up: the slice has gone; $(spent) spent"
        rm -f "$state_dir/slice"
      fi
      try_request
      ;;
  esac
}

try_request() {
  local status=0 errors="$state_dir/create_error"
  if [[ -z "$code" ]]; then
    check_before_renting
    upload_all
  fi
  look_for_mark || return 0
  if [[ "$mark" ]]; then return; fi
  say "up: asking for $ACCELERATOR_TYPE in $ZONE"
  request_slice 2>"$errors" || status=$?
  if [[ "$status" == 0 ]]; then
    waits=0 missing=0
    pause "$POLL_SECONDS"
  # Waiting costs nothing.
  elif grep -qiE 'RESOURCE_EXHAUSTED|quota|stockout|no more capacity' "$errors"; then
    say "up: no slice yet: $(error_line "$errors")"
    rm -f "$state_dir/slice"
    waits=$((waits + 1))
    back_off "$waits"
  else
    fail_slice "the request was refused: $(error_line "$errors")"
  fi
}

# fail_slice WORDS: counts a failure, deletes the slice, waits or gives up.
fail_slice() {
  failures=$((failures + 1))
  say "up: $* (failure $failures of $max_failures in a row)"
  if ((failures >= max_failures)); then give_up "$*"; fi
  delete_slice
  back_off "$failures"
}

# follow_training: the machines report, or have gone silent.
follow_training() {
  end_if_given_up
  if [[ "$reports" == "$before" ]] ||
    (($(grep -c . <<<"$reports") < HOSTS)); then
    silent=$((silent + 1))
  else
    silent=0
  fi
  before="$reports"
  if [[ "$reports" == *guard=refused* ]]; then
    tell "up: the machines may not delete the slice; keep this computer on$(
    ) until the end (launch/README.md, step 4)"
  fi
  [[ -z "$reports" ]] || tell "up: $(sed -nE '1s/: guard=.* phase=([a-z]+) last=/ \1: /p' <<<"$reports")"
  if ((silent >= max_silent_looks)); then
    silent=0
    fail_slice "$(grep -c ' phase=' <<<"$reports") of $HOSTS machines" \
      "reported, and nothing new came in $max_silent_looks looks"
  else
    pause "$POLL_SECONDS"
  fi
}

# end_if_given_up: a machine that can't go on has the slice deleted.
end_if_given_up() {
  local phase
  phase=$(grep -oE ' phase=(failed|deadline|stopped)' <<<"$reports" |
    head -n 1) || return 0
  case "$phase" in
    *deadline) end_for_budget ;;
    *stopped) mark=stop && end_for_mark ;;
  esac
  grep 'phase=failed' <<<"$reports" | cut -c 1-400 | while read -r line; do
    say "$line"
  done
  give_up "training can't go on (see above; the whole logs are in" \
    "$WORKDIR/slices/$slice). Mend it, then run up again: it goes on from" \
    "step $newest_step"
}

end_for_budget() {
  say "up: $(spent) spent, the budget of $BUDGET is used up; saving"
  stop
  collect || true
  look_for_step || true
  say "up: stopped at the budget at step $newest_step. To go on, raise" \
    "BUDGET in $settings_file and run up again"
  exit 3
}

end_for_mark() {
  say "up: $mark was asked for; run up again to go on"
  if [[ "$mark" == stop ]]; then stop; else delete_slice; fi
  exit 1
}

# give_up WORDS: ends without leaving anything that costs money.
give_up() {
  delete_slice
  say "up: giving up: $*"
  exit 1
}
