# The slice as a queued resource of the Cloud TPU API: v4, v5e, v5p, v6e.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # the settings and place: set by the others

# slice_create STARTUP_SCRIPT SECONDS: Google cancels a request that was not met
# within QUEUE_HOURS. A slice that exists is ended by its startup script alone:
# gcloud has no limit for it outside of alpha.
slice_create() {
  local flags=("${CAPACITY_FLAGS[@]}")
  if ((!${#flags[@]})) && [[ "$CAPACITY" == spot ]]; then flags=(--spot); fi
  if [[ "$INTERNAL_IPS" == yes ]]; then flags+=(--internal-ips); fi
  if [[ "$SERVICE_ACCOUNT" ]]; then
    flags+=("--service-account=$SERVICE_ACCOUNT" --scopes=cloud-platform)
  fi
  cloud compute tpus queued-resources create "$NAME" "--node-id=$NAME" \
    "${place[@]}" "--accelerator-type=$ACCELERATOR_TYPE" \
    "--runtime-version=$RUNTIME_VERSION" \
    "--valid-until-duration=${queue_seconds}s" \
    "--metadata-from-file=startup-script=$1" "${flags[@]}" --async
}

# slice_state: prints Google's word for it.
slice_state() {
  cloud compute tpus queued-resources describe "$NAME" "${place[@]}" \
    '--format=value(state.state)'
}

# kind_of WORD: prints the kind of state (see look in pod_slice.sh).
kind_of() {
  case "$1" in
    ACTIVE) echo ready ;;
    ACCEPTED | CREATING | WAITING_FOR_RESOURCES) echo queued ;;
    PROVISIONING) echo starting ;;
    SUSPENDING | SUSPENDED | PREEMPTED) echo lost ;;
    FAILED) echo failed ;;
    DELETING) echo leaving ;;
    *) echo unknown ;;
  esac
}

# What Google calls the thing in the message that it is not there.
resource_kind=queuedResources

# slice_reason: prints why it failed.
slice_reason() {
  cloud compute tpus queued-resources describe "$NAME" "${place[@]}" |
    sed -n 's/^ *message: *//p' | head -n 1
}

# delete_command NAME: sets words, all that has to be deleted to pay no more.
delete_command() {
  words=(compute tpus queued-resources delete "$1" "${place[@]}" --force
    --quiet)
}

slice_remove_rest() {
  :
}
