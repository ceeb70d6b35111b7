# What the slices of a run have cost, and what the run is expected to cost.
#
# The ledger has a line "billed SECONDS PRICE" for each look that first found
# a slice, and "free SECONDS" for the look that found it gone. It counts from
# the last look that found the slice in the queue, so it never counts less
# than the time that the slice existed.
# shellcheck shell=bash
# shellcheck disable=SC2154  # python, dry_run, state_dir: set by pod.sh

# keep_ledger KIND: notes what a look at the slice found.
keep_ledger() {
  local now since
  now=$(date +%s)
  case "$1" in
    queued) echo "$now" >"$state_dir/queued" ;;
    starting | ready | leaving)
      is_billed && return
      since=$(cat "$state_dir/queued" 2>/dev/null || echo "$now")
      echo "billed $since $HOURLY_PRICE" >>"$state_dir/ledger"
      ;;
    absent | empty)
      if is_billed; then echo "free $now" >>"$state_dir/ledger"; fi
      rm -f "$state_dir/queued"
      ;;
  esac
}

is_billed() {
  [[ "$(tail -n 1 "$state_dir/ledger" 2>/dev/null)" == billed* ]]
}

# Whether a slice is, or may come to be, there.
is_asked_for() {
  [[ -f "$state_dir/queued" ]] || is_billed
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

# check_cost STEPS: prints what the run is expected to cost, and refuses one
# that does not fit the slice or the budget.
check_cost() {
  local steps_done plan fits hours money low high left
  plan=$(load_plan) || fail "plan failed (see above); nothing was rented"
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
  steps_done=$(newest_step)
  left=$(calculate "1 - $steps_done / $1")
  say "cost: $CHIPS chips at $PRICE_PER_CHIP_HOUR an hour are" \
    "$(two_digits "$HOURLY_PRICE") an hour"
  say "cost: $1 steps take $hours hours and cost $money ($low to $high)" \
    "by plan's estimate; $steps_done of them are done"
  say "cost: $(two_digits "$left * $money") expected from here;" \
    "$(spent) spent of the budget of $BUDGET"
  if holds "$(spent) + $left * $money > $BUDGET"; then
    fail "BUDGET is $BUDGET; expected at least" \
      "$(two_digits "$(spent) + $left * $money"): spent and still to spend" \
      "(in $settings_file)"
  fi
}

two_digits() {
  printf '%.2f' "$(calculate "$1")"
}

# Prints plan's JSON; compiling takes minutes, so it is kept.
load_plan() {
  local command=("$python" -m bert_jax.plan "--config=$CONFIG"
    "--topology=$ACCELERATOR_TYPE"
    "--price_per_chip_hour=$PRICE_PER_CHIP_HOUR" --json "${OVERRIDES[@]}")
  local key kept
  key=$({ printf '%s\n' "${command[@]}" && cat configs/*.py; } | sha256sum)
  kept="$state_dir/plan-${key:0:16}.json"
  if [[ ! -f "$kept" ]]; then
    "${command[@]}" >"$kept.tmp" || return
    mv "$kept.tmp" "$kept"
  fi
  cat "$kept"
}
