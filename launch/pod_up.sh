# `up`: brings a run to its end, whatever happens to the slice on the way.
#
# It keeps nothing in mind but a few counts: at each turn it looks at the
# bucket, the slice and the workers, and does the one thing that comes next.
# So it can be killed at any moment and started again.
# shellcheck shell=bash
# shellcheck disable=SC2154  # python, dry_run, state_dir: set by pod.sh

max_failures=3 # in a row and without a new checkpoint
max_unreachable=10 # looks at a slice that is there but does not answer

up() {
  local steps
  if "$dry_run"; then
    dry_up
    return
  fi
  take_turn
  trap tell_what_costs EXIT
  trap 'exit 130' INT TERM HUP
  steps=$(count_steps) || exit
  if ! run_is_finished "$steps"; then
    check_cost "$steps"
    upload_corpus
    bring_to_end "$steps"
  fi
  say "up: all $steps steps are done; the slice goes first, it costs money"
  delete
  collect || fail "collect failed, but the slice is gone and $WORKDIR holds" \
    "the run; try bash launch/pod.sh collect again"
}

# Every command of a run in which nothing happens.
dry_up() {
  show "$python" -m bert_jax.plan "--config=$CONFIG" \
    "--topology=$ACCELERATOR_TYPE" \
    "--price_per_chip_hour=$PRICE_PER_CHIP_HOUR" --json "${OVERRIDES[@]}"
  create
  look
  setup
  train
  look
  delete
  collect
}

# Two of them would delete each other's slices.
take_turn() {
  local other
  other=$(cat "$state_dir/up.pid" 2>/dev/null) || true
  if [[ "$other" != "$$" ]] &&
    grep -qs pod.sh "/proc/${other:-none}/cmdline"; then
    fail "up works on $NAME already, as process $other; expected one at a time"
  fi
  echo "$$" >"$state_dir/up.pid"
}

# However `up` ends, nobody shall pay without knowing.
tell_what_costs() {
  is_asked_for || return 0
  say "up: ended, but the slice $NAME is or will be there and costs" \
    "$(two_digits "$HOURLY_PRICE") an hour ($(spent) spent)." \
    "To go on: bash launch/pod.sh up --settings=$settings_file." \
    "To pay no more: bash launch/pod.sh delete --settings=$settings_file"
}

# bring_to_end STEPS: returns when the checkpoint of the last step is there.
bring_to_end() {
  local create_failures=0 setup_failures=0 train_failures=0 unreachable=0
  local uneven=0 last_end_step=-1 looks=0 told='' seen='' stamp
  pack
  while ! run_is_finished "$1"; do
    look
    if is_billed && holds "$(spent) >= $BUDGET"; then end_for_budget; fi
    if [[ "$slice_kind $slice_word" != "$seen" ]]; then
      say "up: slice $NAME: $slice_kind ($slice_word)"
      seen="$slice_kind $slice_word"
    fi
    case "$slice_kind" in
      absent | empty) try_create ;;
      lost)
        say "up: the slice was taken away or failed; deleting what is left"
        delete
        ;;
      ready) drive "$1" ;;
      *)
        refuse_if_hopeless
        # Such as hours without a network, or a login that ran out.
        looks=$((looks + 1))
        if ((looks % 100 == 0)); then seen=''; fi
        pause "$POLL_SECONDS"
        ;;
    esac
  done
}

# tell LINE: says it, and what was spent, unless it was told last.
tell() {
  [[ "$1" == "$told" ]] || say "$1; $(spent) spent"
  told="$1"
}

try_create() {
  local output status=0
  say "up: asking for $ACCELERATOR_TYPE in $ZONE"
  date +%s >"$state_dir/queued"
  output=$(slice_create 2>&1) || status=$?
  if [[ "$status" == 0 || "$output" =~ ALREADY_EXISTS|already\ exists ]]; then
    create_failures=0
    pause "$POLL_SECONDS"
    return
  fi
  local reason
  reason=$(grep -m 1 ERROR <<<"$output" || tail -n 1 <<<"$output")
  if will_never_work "$output"; then
    rm -f "$state_dir/queued"
    say "up: nothing was rented; gcloud would refuse again: $reason"
    exit 1
  fi
  create_failures=$((create_failures + 1))
  say "up: no slice (try $create_failures): $reason"
  back_off "$create_failures"
}

# Where gcloud never was able to say anything, such as without a login.
refuse_if_hopeless() {
  if [[ "$slice_kind" == unknown ]] && ! is_asked_for &&
    will_never_work "$slice_word"; then
    fail "gcloud can't be used like this: $slice_word; nothing was rented"
  fi
}

# Mistakes in the settings or rights; all else (quota, no capacity, the
# network) may be better later, and waiting costs nothing.
will_never_work() {
  local pattern='PERMISSION_DENIED|INVALID_ARGUMENT|SERVICE_DISABLED|'
  pattern+='UNAUTHENTICATED|has not been used in project|billing|'
  pattern+='unrecognized arguments|invalid choice|argument --|'
  pattern+='auth login|active account|Required .* permission|Invalid value'
  grep -qiE "$pattern" <<<"$1"
}

# drive STEPS: sees to the workers of a slice that is ready.
drive() {
  local answers active=0 count
  if ! on_workers "$state_command"; then
    unreachable=$((unreachable + 1))
    say "up: a worker does not answer ($unreachable of $max_unreachable)"
    if ((unreachable >= max_unreachable)); then
      say "up: giving this slice back and asking for another one"
      delete
      unreachable=0
    else
      pause "$POLL_SECONDS"
    fi
    return
  fi
  unreachable=0
  answers=$(print_answers)
  count=$(wc -l <<<"$answers")
  active=$(grep -c ' unit=active ' <<<"$answers") || true
  if ((active == count)); then
    uneven=0
    tell "up: $(sed -n '1s/.* last=//p' <<<"$answers")"
    pause "$POLL_SECONDS"
  elif ((active > 0)); then
    mend_uneven "$answers"
  elif run_is_finished "$1"; then
    return
  elif grep -qv " setup=$stamp " <<<"$answers"; then
    try_setup
  else
    if grep -q ' ended=[0-9]' <<<"$answers"; then note_end "$answers"; fi
    start_training
  fi
}

# Some workers train and some do not: those that never began are started;
# where one has ended the others follow it, or are ended.
mend_uneven() {
  uneven=$((uneven + 1))
  if grep -q ' unit=inactive ended=none' <<<"$1"; then
    start_training
  elif ((uneven >= 10)); then
    say "up: some workers ended and the others hang; ending them"
    stop || true
    uneven=0
  else
    tell "up: some workers have ended; waiting for the others"
    pause "$POLL_SECONDS"
  fi
}

try_setup() {
  if setup; then
    setup_failures=0
    return
  fi
  setup_failures=$((setup_failures + 1))
  say "up: setup failed ($setup_failures of $max_failures)"
  if ((setup_failures >= max_failures)); then
    print_answers | tail -n 20
    give_up "setup failed $setup_failures times; see above and $state_dir"
  fi
  back_off "$setup_failures"
}

start_training() {
  if train; then return; fi
  train_failures=$((train_failures + 1))
  say "up: training can't be started ($train_failures of $max_failures)"
  if ((train_failures >= max_failures)); then
    give_up "training could not be started; see above"
  fi
  back_off "$train_failures"
}

# note_end ANSWERS: training ended on all workers before its last step.
note_end() {
  local step first
  step=$(newest_step)
  if ((step > last_end_step)); then train_failures=0; fi
  last_end_step="$step"
  train_failures=$((train_failures + 1))
  first=$(grep -m 1 ' ended=[1-9]' <<<"$1" || head -n 1 <<<"$1")
  say "up: training ended ($train_failures of $max_failures without a new" \
    "checkpoint; the newest is step $step): ${first:0:300}"
  # Status 2 is a mistake in the settings; trying again would not mend it.
  if ((train_failures >= max_failures)) || grep -q ' ended=2 ' <<<"$1"; then
    on_workers 'tail -n 40 bert/train.log' || true
    print_answers | tee -a "$state_dir/pod.log"
    give_up "training failed; the ends of the logs are above, the whole ones" \
      "in $WORKDIR/logs. Mend it, then run up again: it goes on from step $step"
  fi
  back_off "$train_failures"
}

end_for_budget() {
  say "up: $(spent) spent, the budget of $BUDGET is used up; saving"
  if [[ "$slice_kind" == ready ]]; then stop || true; fi
  delete
  collect || true
  say "up: stopped at the budget at step $(newest_step). To go on, raise" \
    "BUDGET in $settings_file and run up again"
  exit 3
}

# give_up WORDS: ends without leaving anything that costs money.
give_up() {
  say "up: giving up: $*"
  delete
  exit 1
}
