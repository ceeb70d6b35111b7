# The slice as a queued resource of the Cloud TPU API: v4, v5e, v5p, v6e.
# shellcheck shell=bash
# shellcheck disable=SC2154  # python, dry_run, state_dir: set by pod.sh

slice_create() {
  local flags=("${CAPACITY_FLAGS[@]}")
  if [[ "${#flags[@]}" == 0 && "$SPOT" == yes ]]; then flags=(--spot); fi
  if [[ "$INTERNAL_IPS" == yes ]]; then flags+=(--internal-ips); fi
  if [[ "$SERVICE_ACCOUNT" ]]; then
    flags+=("--service-account=$SERVICE_ACCOUNT" --scopes=cloud-platform)
  fi
  cloud compute tpus queued-resources create "$NAME" "--node-id=$NAME" \
    "--zone=$ZONE" "--project=$PROJECT" \
    "--accelerator-type=$ACCELERATOR_TYPE" \
    "--runtime-version=$RUNTIME_VERSION" "${flags[@]}" --async
}

# Prints the kind of state (see look in pod.sh) and Google's word for it.
slice_state() {
  local word errors
  errors=$(mktemp)
  if word=$(limit=120 cloud compute tpus queued-resources describe "$NAME" \
    "--zone=$ZONE" "--project=$PROJECT" '--format=value(state.state)' \
    2>"$errors"); then
    case "$word" in
      ACTIVE) echo "ready $word" ;;
      ACCEPTED | CREATING | WAITING_FOR_RESOURCES) echo "queued $word" ;;
      PROVISIONING) echo "starting $word" ;;
      SUSPENDING | SUSPENDED | FAILED | PREEMPTED) echo "lost $word" ;;
      DELETING) echo "leaving $word" ;;
      *) echo "unknown $word" ;;
    esac
  elif is_not_found "$errors"; then
    echo "absent NOT_FOUND"
  else
    echo "unknown $(error_line "$errors")"
  fi
  rm -f "$errors"
}

slice_delete() {
  remove_once compute tpus queued-resources delete "$NAME" "--zone=$ZONE" \
    "--project=$PROJECT" --force --quiet
}

# Prints what slice_ssh takes, a line for each worker.
slice_workers() {
  seq 0 $((HOSTS - 1))
}

# slice_ssh WORKER COMMAND
slice_ssh() {
  if [[ "$INTERNAL_IPS" == yes ]]; then
    # The only one of the two that can tunnel.
    cloud compute tpus queued-resources ssh "$NAME" "--zone=$ZONE" \
      "--project=$PROJECT" --node=all "--worker=$1" --tunnel-through-iap \
      "--command=$2"
  else
    cloud compute tpus tpu-vm ssh "$NAME" "--zone=$ZONE" \
      "--project=$PROJECT" "--worker=$1" "--ssh-flag=$keep_alive" \
      "--command=$2"
  fi
}

# slice_scp FILE: copies a file into the home folder of every worker.
slice_scp() {
  if [[ "$INTERNAL_IPS" == yes ]]; then
    cloud compute tpus queued-resources scp "$1" "$NAME:${1##*/}" "--zone=$ZONE" \
      "--project=$PROJECT" --node=all --worker=all --batch-size=8 \
      --tunnel-through-iap
  else
    cloud compute tpus tpu-vm scp "$1" "$NAME:${1##*/}" "--zone=$ZONE" \
      "--project=$PROJECT" --worker=all
  fi
}
