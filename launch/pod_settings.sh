# Reads the settings of a run and derives what follows from them.
# shellcheck shell=bash
# shellcheck disable=SC2034  # what is set here is used by the other files

settings_names=(
  PROJECT ZONE NAME BACKEND ACCELERATOR_TYPE RUNTIME_VERSION SPOT
  CAPACITY_FLAGS INTERNAL_IPS SERVICE_ACCOUNT ACCOUNT BUCKET CONFIG OVERRIDES
  CORPUS PRICE_PER_CHIP_HOUR BUDGET POLL_SECONDS
)

# load_settings FILE: sets every setting, and REGION, CHIPS, HOSTS, TOPOLOGY,
# MACHINE_TYPE, WORKDIR and HOURLY_PRICE.
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
  : "${INTERNAL_IPS:=no}" "${POLL_SECONDS:=30}" "${SPOT:=yes}"
  : "${BACKEND:=queued-resources}" "${CORPUS:=runs/${NAME:-}/corpus}"
  BUCKET="${BUCKET:-}" BUCKET="${BUCKET%/}"
  check_settings
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

# require SETTING PATTERN EXPECTED
require() {
  local value="${!1-}"
  [[ "$value" =~ ^($2)$ ]] || fail "$1 is '$value'; expected $3" \
    "(in $settings_file)"
}

check_settings() {
  require PROJECT '[a-z][a-z0-9:.-]{4,}[a-z0-9]' \
    "a project's ID, such as my-project-123"
  require ZONE '[a-z]+-[a-z]+[0-9]+-[a-z]' "a zone, such as us-west4-a"
  require NAME '[a-z]([a-z0-9-]{0,38}[a-z0-9])?' \
    "at most 40 small letters, digits and hyphens, a letter first"
  require BACKEND 'queued-resources|instance-group' \
    "queued-resources or instance-group"
  require ACCELERATOR_TYPE '(v5litepod|v6e|v4|v5p)-[0-9]+' \
    "a slice, such as v5litepod-16, v6e-16, v4-32 or v5p-32"
  require RUNTIME_VERSION '[a-z0-9.-]*' "a version, such as v2-alpha-tpuv6e"
  require SPOT 'yes|no' "yes or no"
  require INTERNAL_IPS 'yes|no' "yes or no"
  require SERVICE_ACCOUNT '|[^@[:space:]]+@[^@[:space:]]+' \
    "an address of a service account, or nothing"
  require ACCOUNT '|[^@[:space:]]+@[^@[:space:]]+' \
    "an address that gcloud is logged in with, or nothing"
  require BUCKET 'gs://[a-z0-9][a-z0-9._-]*[a-z0-9](/[^[:space:]]+)?|/[^[:space:]]+' \
    "gs:// and a bucket (or the absolute path of a folder that all share)"
  require CONFIG 'configs/[A-Za-z0-9_/]+\.py' \
    "a file of configs/, such as configs/bert_base.py"
  [[ -f "$CONFIG" ]] || fail "CONFIG is '$CONFIG', which is not there;" \
    "expected a file of configs/ (in $settings_file)"
  require CORPUS '[^[:space:]]+' "a folder here, such as runs/$NAME/corpus"
  require PRICE_PER_CHIP_HOUR '[0-9]+(\.[0-9]+)?|\.[0-9]+' \
    "a number, such as 1.20"
  holds "$PRICE_PER_CHIP_HOUR > 0" || fail "PRICE_PER_CHIP_HOUR is" \
    "'$PRICE_PER_CHIP_HOUR'; expected more than 0 (in $settings_file)"
  require BUDGET '[0-9]+(\.[0-9]+)?' "a number, such as 150"
  require POLL_SECONDS '[0-9]+(\.[0-9]+)?' "seconds, such as 30"
  local override
  for override in "${OVERRIDES[@]}"; do
    [[ "$override" == --config.?*=* ]] || fail "OVERRIDES has '$override';" \
      "expected --config.KEY=VALUE (in $settings_file)"
    [[ "$override" != --config.corpus.dir=* ]] || fail "OVERRIDES has" \
      "'$override'; expected the folder in CORPUS (in $settings_file)"
  done
}

derive_settings() {
  REGION="${ZONE%-*}"
  WORKDIR="$BUCKET/$NAME"
  local kind="${ACCELERATOR_TYPE%-*}" size="${ACCELERATOR_TYPE##*-}"
  local version flat=yes
  MACHINE_TYPE=
  case "$kind" in
    v5litepod) version=v2-alpha-tpuv5-lite ;;
    v6e) version=v2-alpha-tpuv6e MACHINE_TYPE=ct6e-standard-4t ;;
    v4) version=tpu-ubuntu2204-base flat=no ;;
    v5p) version=v2-alpha-tpuv5 flat=no MACHINE_TYPE=ct5p-hightpu-4t ;;
  esac
  : "${RUNTIME_VERSION:=$version}"
  # These two are named after their TensorCores, two a chip.
  CHIPS=$((10#$size))
  [[ "$flat" == yes ]] || CHIPS=$((10#$size / 2))
  case "$flat-$CHIPS" in
    yes-4) TOPOLOGY=2x2 ;; no-4) TOPOLOGY=2x2x1 ;;
    yes-8) TOPOLOGY=2x4 ;; no-8) TOPOLOGY=2x2x2 ;;
    yes-16) TOPOLOGY=4x4 ;; no-16) TOPOLOGY=2x2x4 ;;
    yes-32) TOPOLOGY=4x8 ;; no-32) TOPOLOGY=2x4x4 ;;
    yes-64) TOPOLOGY=8x8 ;; no-64) TOPOLOGY=4x4x4 ;;
    yes-128) TOPOLOGY=8x16 ;; no-128) TOPOLOGY=4x4x8 ;;
    yes-256) TOPOLOGY=16x16 ;; no-256) TOPOLOGY=4x8x8 ;;
    *) fail "ACCELERATOR_TYPE is '$ACCELERATOR_TYPE'; expected a slice of 4," \
      "8, 16, 32, 64, 128 or 256 chips (in $settings_file)" ;;
  esac
  HOSTS=$((CHIPS / 4))
  [[ "$flat-$CHIPS" != yes-8 ]] || HOSTS=1
  if [[ "$BACKEND" == instance-group ]]; then
    [[ "$MACHINE_TYPE" && "$HOSTS" -gt 1 ]] || fail "ACCELERATOR_TYPE is" \
      "'$ACCELERATOR_TYPE'; expected v6e-16 or v5p-16 or larger with" \
      "BACKEND=instance-group (in $settings_file)"
  fi
  HOURLY_PRICE=$(calculate "$CHIPS * $PRICE_PER_CHIP_HOUR")
}

# calculate EXPRESSION: arithmetic with fractions, as bash has none.
calculate() {
  LC_ALL=C awk "BEGIN { printf \"%.4f\", $1 }"
}

# holds EXPRESSION: whether a comparison with fractions is true.
holds() {
  LC_ALL=C awk "BEGIN { exit !($1) }"
}
