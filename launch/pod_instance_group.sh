# The slice as a managed instance group of Compute Engine: v5p and v6e, the
# way that Google recommends for what is newer than v5e. Group, template and
# workload policy bear the run's name; only the group's machines cost money.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # the settings and place: set by the others

# slice_create STARTUP_SCRIPT SECONDS: Google deletes each machine ten minutes
# after the SECONDS in which it should have deleted itself. Template and policy
# are made anew for each slice.
slice_create() {
  local url region="${ZONE%-*}" flags=("${CAPACITY_FLAGS[@]}")
  url="https://www.googleapis.com/compute/v1/projects/$PROJECT/regions/$region"
  if ((!${#flags[@]})); then
    case "$CAPACITY" in
      spot) flags=(--provisioning-model=SPOT) ;;
      flex-start)
        flags=(--provisioning-model=FLEX_START --reservation-affinity=none) ;;
    esac
  fi
  if [[ "$INTERNAL_IPS" == yes ]]; then flags+=(--no-address); fi
  if [[ "$SERVICE_ACCOUNT" ]]; then
    flags+=("--service-account=$SERVICE_ACCOUNT")
  fi
  slice_remove_rest || return
  cloud compute resource-policies create workload-policy "$NAME" \
    "--region=$region" "--project=$PROJECT" --type=HIGH_THROUGHPUT \
    "--accelerator-topology=$TOPOLOGY" || return
  cloud compute instance-templates create "$NAME" \
    "--instance-template-region=$region" "--project=$PROJECT" \
    "--machine-type=$MACHINE_TYPE" \
    --image-family=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e \
    --image-project=ubuntu-os-accelerator-images \
    --maintenance-policy=TERMINATE --boot-disk-size=200GB \
    --scopes=https://www.googleapis.com/auth/cloud-platform \
    "--max-run-duration=$(($2 + 600))s" --instance-termination-action=DELETE \
    "--metadata-from-file=startup-script=$1" "${flags[@]}" || return
  # Both must be full URLs. Size 0 first: only `resize` may start machines,
  # all at once, and nothing may replace one of them alone.
  cloud compute instance-groups managed create "$NAME" "${place[@]}" --size=0 \
    "--template=$url/instanceTemplates/$NAME" --target-size-policy-mode=bulk \
    "--workload-policy=$url/resourcePolicies/$NAME" \
    --default-action-on-vm-failure=do-nothing || return
  cloud compute instance-groups managed resize "$NAME" "${place[@]}" \
    "--size=$HOSTS"
}

# slice_state: prints the machines' names and states.
slice_state() {
  cloud compute instance-groups managed list-instances "$NAME" "${place[@]}" \
    '--format=value(instance.basename(),instanceStatus)'
}

# kind_of STATES: prints the kind of state (see look in pod_slice.sh).
kind_of() {
  local running
  running=$(grep -cw RUNNING <<<"$1") || true
  if [[ -z "$1" ]]; then
    echo empty
  elif grep -qwE 'STOPPING|STOPPED|TERMINATED|SUSPEND(ING|ED)|REPAIRING' \
    <<<"$1"; then
    echo lost
  elif [[ "$running" == "$HOSTS" ]]; then
    echo ready
  elif grep -qwE 'RUNNING|PROVISIONING|STAGING' <<<"$1"; then
    echo starting
  else
    echo queued
  fi
}

# What Google calls the thing in the message that it is not there.
resource_kind=instanceGroupManagers

# slice_reason: prints why it failed.
slice_reason() {
  cloud compute instance-groups managed list-errors "$NAME" "${place[@]}" \
    '--format=value(error.message)' --limit=1
}

# delete_command NAME: sets words, all that has to be deleted to pay no more;
# the machines go with their group, one alone would be made again.
delete_command() {
  words=(compute instance-groups managed delete "$1" "${place[@]}" --quiet)
}

# slice_remove_rest: what costs nothing, but would be stale for the next slice.
slice_remove_rest() {
  local thing errors="$state_dir/remove_error"
  for thing in instance-templates resource-policies; do
    cloud compute "$thing" delete "$NAME" "--region=${ZONE%-*}" \
      "--project=$PROJECT" --quiet 2>"$errors" ||
      grep -q "$NAME' was not found" "$errors" || {
      cat "$errors" >&2
      return 1
    }
  done
}
