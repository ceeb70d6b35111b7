# Reads the settings of a run and derives what follows from them.
# shellcheck shell=bash
# shellcheck disable=SC2034  # what is set here is used by the other files

settings_names=(
  PROJECT ZONE NAME BACKEND ACCELERATOR_TYPE RUNTIME_VERSION CAPACITY
  CAPACITY_FLAGS QUEUE_HOURS INTERNAL_IPS SERVICE_ACCOUNT ACCOUNT BUCKET CONFIG
  OVERRIDES CORPUS PRICE_PER_CHIP_HOUR BUDGET POLL_SECONDS
)

# load_settings FILE: sets every setting, and config_flags, init_flags, CHIPS,
# HOSTS, TOPOLOGY, MACHINE_TYPE, WORKDIR and HOURLY_PRICE.
load_settings() {
  settings_file="$1"
  [[ -f "$settings_file" ]] || fail "$settings_file is not there; expected" \
    "your settings (cp launch/settings.example.sh $settings_file, then edit it)"
  check_names
  # What the caller's shell exports is no setting.
  unset "${settings_names[@]}"
  OVERRIDES=() CAPACITY_FLAGS=()
  # shellcheck source=launch/settings.example.sh
  source "$settings_file" || fail "$settings_file can't be read as bash"
  : "${RUNTIME_VERSION:=}" "${SERVICE_ACCOUNT:=}" "${ACCOUNT:=}"
  : "${POLL_SECONDS:=30}" "${QUEUE_HOURS:=24}" "${INTERNAL_IPS:=no}"
  : "${CAPACITY:=spot}" "${BACKEND:=queued-resources}"
  : "${CORPUS:=runs/${NAME:-}/corpus}"
  BUCKET="${BUCKET:-}" BUCKET="${BUCKET%/}"
  check_settings
  split_overrides
  derive_settings
}

# A misspelt setting would silently leave the default in force.
check_names() {
  local name
  while read -r name; do
    [[ " ${settings_names[*]} " == *" $name "* ]] || fail "$settings_file" \
      "sets $name; expected one of ${settings_names[*]}"
  done < <(sed -nE 's/^[[:space:]]*(export +)?([A-Za-z_][A-Za-z0-9_]*)\+?=.*/\2/p' \
    "$settings_file")
}

# Each line: SETTING, a pattern for its whole value, what is expected.
setting_rules='
PROJECT [a-z][a-z0-9:.-]{4,}[a-z0-9] an ID such as my-project-123
ZONE [a-z]+-[a-z]+[0-9]+-[a-z] a zone, such as us-west4-a
NAME [a-z]([a-z0-9-]{0,38}[a-z0-9])? at most 40 small letters, digits and hyphens, a letter first
BACKEND queued-resources|instance-group queued-resources or instance-group
ACCELERATOR_TYPE (v5litepod|v6e|v4|v5p)-[0-9]+ a slice, such as v5litepod-16, v6e-16, v4-32 or v5p-32
RUNTIME_VERSION [a-z0-9.-]* a version, such as v2-alpha-tpuv6e
CAPACITY spot|flex-start|on-demand spot, flex-start or on-demand
QUEUE_HOURS [0-9]*\.?[0-9]+ hours, such as 24
INTERNAL_IPS yes|no yes or no
SERVICE_ACCOUNT |[^@[:space:]]+@[^@[:space:]]+ an address of a service account, or nothing
ACCOUNT |[^@[:space:]]+@[^@[:space:]]+ an address that gcloud is logged in with, or nothing
BUCKET gs://[a-z0-9][a-z0-9._-]*[a-z0-9](/[^[:space:]]+)? gs:// and a bucket
CONFIG configs/[A-Za-z0-9_/]+\.py a file of configs/, such as configs/bert_base.py
CORPUS [^[:space:]]+ a folder here, such as runs/my-bert/corpus
PRICE_PER_CHIP_HOUR 0*[1-9][0-9]*(\.[0-9]+)?|0*\.[0-9]*[1-9][0-9]* a number above 0, such as 1.20
BUDGET [0-9]*\.?[0-9]+ a number, such as 150
POLL_SECONDS [0-9]*\.?[0-9]+ seconds, such as 30'

check_settings() {
  local name pattern expected
  while read -r name pattern expected; do
    [[ -z "$name" || "${!name-}" =~ ^($pattern)$ ]] || fail "$name is" \
      "'${!name-}'; expected $expected (in $settings_file)"
  done <<<"$setting_rules"
  [[ -f "$CONFIG" ]] || fail "CONFIG is '$CONFIG', which is not there;" \
    "expected a file of configs/ (in $settings_file)"
}

# plan and prepare take the config's flags, training also those of --init.
split_overrides() {
  local override
  config_flags=() init_flags=()
  for override in "${OVERRIDES[@]}"; do
    case "$override" in
      --config.corpus.dir=*) fail "OVERRIDES has '$override'; expected the" \
        "folder in CORPUS (in $settings_file)" ;;
      --config.?*=*) config_flags+=("$override") ;;
      --init=?* | --extend_vocab=?* | --init_optimizer=?*)
        init_flags+=("$override") ;;
      *) fail "OVERRIDES has '$override'; expected --config.KEY=VALUE or" \
        "--init=FOLDER (in $settings_file)" ;;
    esac
  done
}

derive_settings() {
  local version cores=1 shapes=([4]=2x2 [8]=2x4 [16]=4x4 [32]=4x8 [64]=8x8
    [128]=8x16 [256]=16x16)
  # v4 and v5p are tori of three dimensions, named after the TensorCores, two a
  # chip.
  if [[ "$ACCELERATOR_TYPE" =~ ^(v4|v5p)- ]]; then
    cores=2 shapes=([4]=2x2x1 [8]=2x2x2 [16]=2x2x4 [32]=2x4x4 [64]=4x4x4
      [128]=4x4x8 [256]=4x8x8)
  fi
  WORKDIR="$BUCKET/$NAME" MACHINE_TYPE=''
  case "$ACCELERATOR_TYPE" in
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v6e-*) version=v2-alpha-tpuv6e MACHINE_TYPE=ct6e-standard-4t ;;
    v4-*) version=tpu-ubuntu2204-base ;;
    v5p-*) version=v2-alpha-tpuv5 MACHINE_TYPE=ct5p-hightpu-4t ;;
  esac
  : "${RUNTIME_VERSION:=$version}"
  CHIPS=$((10#${ACCELERATOR_TYPE##*-} / cores)) TOPOLOGY="${shapes[CHIPS]-}"
  [[ "$TOPOLOGY" ]] || fail "ACCELERATOR_TYPE is '$ACCELERATOR_TYPE'; expected" \
    "a slice of 4, 8, 16, 32, 64, 128 or 256 chips (in $settings_file)"
  HOSTS=$((CHIPS / 4))
  if [[ "$TOPOLOGY" == 2x4 ]]; then HOSTS=1; fi
  HOURLY_PRICE=$(calculate "$CHIPS * $PRICE_PER_CHIP_HOUR")
  check_backend
}

check_backend() {
  if [[ "$BACKEND" == instance-group ]]; then
    [[ "$MACHINE_TYPE" && "$HOSTS" -gt 1 ]] || fail "ACCELERATOR_TYPE is" \
      "'$ACCELERATOR_TYPE'; expected v6e-16 or v5p-16 or larger with" \
      "BACKEND=instance-group (in $settings_file)"
  elif [[ "$CAPACITY" == flex-start ]]; then
    fail "CAPACITY is 'flex-start'; expected spot or on-demand with" \
      "BACKEND=queued-resources (in $settings_file)"
  fi
}

# calculate EXPRESSION: arithmetic with fractions, as bash has none.
calculate() {
  LC_ALL=C awk "BEGIN { printf \"%.4f\", $1 }"
}

# holds EXPRESSION: whether a comparison with fractions is true.
holds() {
  LC_ALL=C awk "BEGIN { exit !($1) }"
}
