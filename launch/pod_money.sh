# What the slices of a run have cost, and what the run is expected to cost.
#
# The ledger has a line "billed SECONDS PRICE" for each slice and "free SECONDS"
# for its end. It counts from the last look that found the slice in the queue
# to ten minutes after the last report of its machines, or, where there is
# none, to the look that found it gone: never less than the slice existed.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # python, state_dir and more: set by the others

# keep_ledger KIND: notes what a look at the slice found.
keep_ledger() {
  case "$1" in
    queued) touch "$state_dir/slice" ;;
    starting | ready | leaving)
      is_billed || echo "billed $(date -r "$state_dir/slice" +%s)" \
        "$HOURLY_PRICE" >>"$state_dir/ledger" ;;
    absent | empty)
      if is_billed; then echo "free $(end_of_bill)" >>"$state_dir/ledger"; fi ;;
  esac
}

is_billed() {
  [[ "$(tail -n 1 "$state_dir/ledger" 2>/dev/null)" == billed* ]]
}

end_of_bill() {
  local now last=''
  now=$(date +%s)
  if look_for_reports; then
    last=$(sed -nE 's/.* at=([0-9]+) .*/\1/p' <<<"$reports" | sort -n |
      tail -n 1)
  fi
  last=$((${last:-$now} + 600))
  echo $((last < now ? last : now))
}

# Prints what all slices of the run have cost until now.
spent() {
  [[ -f "$state_dir/ledger" ]] || { echo 0.00 && return; }
  LC_ALL=C awk -v now="$(date +%s)" '
    $1 == "billed" { since = $2; price = $3 }
    $1 == "free" { total += ($2 - since) / 3600 * price; price = 0 }
    END { printf "%.2f", total + (price ? (now - since) / 3600 * price : 0) }
  ' "$state_dir/ledger"
}

# Prints the seconds that the rest of the budget lasts.
seconds_left() {
  calculate "($BUDGET - $(spent)) / $HOURLY_PRICE * 3600" | sed 's/\..*//'
}

# check_cost: prints what the run is expected to cost, and refuses one that
# does not fit the slice or the budget.
check_cost() {
  local plan fits hours money low high left
  plan=$(run "$python" -m bert_jax.plan "--config=$CONFIG" \
    "--topology=$ACCELERATOR_TYPE" \
    "--price_per_chip_hour=$PRICE_PER_CHIP_HOUR" --json "${config_flags[@]}") ||
    fail "plan failed (see above); nothing was rented"
  "$dry_run" && return
  read -r fits hours money low high < <("$python" -c '
import json, sys
plan = json.load(sys.stdin)
numbers = [plan.get("hours", 0), plan.get("money", 0)]
numbers += plan.get("money_range", [0, 0])
print("yes" if plan["fits"] else "no", *(f"{n:.2f}" for n in numbers))
' <<<"$plan")
  [[ "$fits" == yes ]] || fail "the run does not fit in the memory of" \
    "$ACCELERATOR_TYPE; expected smaller batches or more chips (see python -m" \
    "bert_jax.plan --config=$CONFIG --topology=$ACCELERATOR_TYPE)"
  left=$(two_digits "(1 - $newest_step / $steps) * $money")
  say "cost: $CHIPS chips at $PRICE_PER_CHIP_HOUR an hour are" \
    "$(two_digits "$HOURLY_PRICE") an hour"
  say "cost: $steps steps take $hours hours and cost $money ($low to $high)" \
    "by plan's estimate; $newest_step of them are done"
  say "cost: $left expected from here; $(spent) spent of the budget of $BUDGET"
  if holds "$(spent) + $left > $BUDGET"; then
    fail "BUDGET is $BUDGET; expected at least" \
      "$(two_digits "$(spent) + $left"): spent and still to spend" \
      "(in $settings_file)"
  fi
}

two_digits() {
  printf '%.2f' "$(calculate "$1")"
}
