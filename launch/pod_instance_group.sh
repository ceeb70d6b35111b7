# The slice as a managed instance group of Compute Engine: v5p and v6e, the
# way that Google recommends for what is newer than v5e. Group, template and
# workload policy bear the run's name; only the group's machines cost money.
# shellcheck shell=bash
# shellcheck disable=SC2154  # python, dry_run, state_dir: set by pod.sh

slice_create() {
  local flags=("${CAPACITY_FLAGS[@]}")
  if [[ "${#flags[@]}" == 0 && "$SPOT" == yes ]]; then
    flags=(--provisioning-model=SPOT --instance-termination-action=STOP)
  fi
  if [[ "$INTERNAL_IPS" == yes ]]; then flags+=(--no-address); fi
  if [[ "$SERVICE_ACCOUNT" ]]; then
    flags+=("--service-account=$SERVICE_ACCOUNT")
  fi
  local region_url="https://www.googleapis.com/compute/v1/projects/$PROJECT/regions/$REGION"
  make_once compute resource-policies create workload-policy "$NAME" \
    "--region=$REGION" "--project=$PROJECT" --type=HIGH_THROUGHPUT \
    "--accelerator-topology=$TOPOLOGY" || return
  make_once compute instance-templates create "$NAME" \
    "--instance-template-region=$REGION" "--project=$PROJECT" \
    "--machine-type=$MACHINE_TYPE" \
    --image-family=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e \
    --image-project=ubuntu-os-accelerator-images \
    --maintenance-policy=TERMINATE --boot-disk-size=200GB \
    --scopes=https://www.googleapis.com/auth/cloud-platform \
    "${flags[@]}" || return
  # Both must be full URLs. Size 0 first: only `resize` may start machines,
  # all at once, and nothing may replace one of them alone.
  make_once compute instance-groups managed create "$NAME" "--zone=$ZONE" \
    "--project=$PROJECT" --size=0 \
    "--template=$region_url/instanceTemplates/$NAME" \
    --target-size-policy-mode=bulk \
    "--workload-policy=$region_url/resourcePolicies/$NAME" \
    --default-action-on-vm-failure=do-nothing || return
  cloud compute instance-groups managed resize "$NAME" "--zone=$ZONE" \
    "--project=$PROJECT" "--size=$HOSTS"
}

list_instances() {
  limit=120 cloud compute instance-groups managed list-instances "$NAME" \
    "--zone=$ZONE" "--project=$PROJECT" \
    '--format=value(instance.basename(),instanceStatus)'
}

# Prints the kind of state (see look in pod.sh) and Google's word for it.
slice_state() {
  local output errors running
  errors=$(mktemp)
  if output=$(list_instances 2>"$errors"); then
    running=$(grep -cw RUNNING <<<"$output") || true
    if [[ -z "$output" ]]; then
      echo "empty NO_MACHINES"
    elif grep -qwE 'STOPPING|STOPPED|TERMINATED|SUSPEND(ING|ED)|REPAIRING' \
      <<<"$output"; then
      echo "lost $running of $HOSTS RUNNING"
    elif [[ "$running" == "$HOSTS" ]]; then
      echo "ready RUNNING"
    elif grep -qwE 'RUNNING|PROVISIONING|STAGING' <<<"$output"; then
      echo "starting $running of $HOSTS RUNNING"
    else
      echo "queued 0 of $HOSTS RUNNING"
    fi
  elif is_not_found "$errors"; then
    echo "absent NOT_FOUND"
  else
    echo "unknown $(error_line "$errors")"
  fi
  rm -f "$errors"
}

# The machines go with their group; one alone would be made again.
slice_delete() {
  remove_once compute instance-groups managed delete "$NAME" "--zone=$ZONE" \
    "--project=$PROJECT" --quiet || return
  remove_once compute instance-templates delete "$NAME" "--region=$REGION" \
    "--project=$PROJECT" --quiet || return
  remove_once compute resource-policies delete "$NAME" "--region=$REGION" \
    "--project=$PROJECT" --quiet
}

# Prints what slice_ssh takes, a line for each worker.
slice_workers() {
  if "$dry_run"; then
    list_instances
    seq -f "$NAME-%g" 0 $((HOSTS - 1))
  else
    list_instances | awk '{ print $1 }' | sort
  fi
}

# slice_ssh WORKER COMMAND
slice_ssh() {
  local flags=("--ssh-flag=$keep_alive")
  if [[ "$INTERNAL_IPS" == yes ]]; then flags=(--tunnel-through-iap); fi
  cloud compute ssh "$1" "--zone=$ZONE" "--project=$PROJECT" "${flags[@]}" \
    "--command=$2"
}

# slice_scp FILE: copies a file into the home folder of every worker.
slice_scp() {
  local worker flags=()
  if [[ "$INTERNAL_IPS" == yes ]]; then flags=(--tunnel-through-iap); fi
  for worker in $(slice_workers); do
    cloud compute scp "$1" "$worker:${1##*/}" "--zone=$ZONE" \
      "--project=$PROJECT" \
      "${flags[@]}" || return
  done
}
