# Everything a run needs, checked and uploaded before anything is rented.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # settings, python, dry_run: set by the others

# read_run: sets steps, vocab_file, init and train_flags.
read_run() {
  local facts flag
  facts=$("$python" launch/run_facts.py "--config=$CONFIG" \
    "${config_flags[@]}") || exit 2
  steps=$(sed -n 's/^steps //p' <<<"$facts")
  vocab_file=$(sed -n 's/^vocab_file //p' <<<"$facts")
  init=''
  train_flags=("--config=$CONFIG" "${config_flags[@]}"
    "--config.corpus.dir=$CORPUS")
  if is_here "$vocab_file"; then
    train_flags+=("--config.corpus.vocab_file=inputs/vocab.txt")
  fi
  for flag in "${init_flags[@]}"; do
    if [[ "$flag" == --init=* ]] && is_here "${flag#*=}"; then
      init="${flag#*=}"
      flag="--init=inputs/init"
    fi
    train_flags+=("$flag")
  done
}

# is_here PATH: whether it names a file of this computer.
is_here() {
  [[ "$1" && "$1" != *://* ]]
}

check_before_renting() {
  local path region="${ZONE%-*}" output
  for path in "$vocab_file" "$init"; do
    ! is_here "$path" || [[ -e "$path" ]] || fail "$path is not there; expected" \
      "the vocabulary or model that CONFIG or OVERRIDES name (in $settings_file)"
  done
  path="gs://$(cut -d / -f 3 <<<"$BUCKET")"
  output=$(limit=120 cloud storage buckets describe "$path" \
    '--format=value(location)' 2>&1) || fail "$path can't be read:" \
    "$(error_line <(echo "$output")); nothing was rented"
  # The others span regions.
  [[ "${output,,}" =~ ^($region|us|eu|asia|nam4|eur[0-9]|asia1)$ ]] || "$dry_run" ||
    fail "$path lies in ${output,,}; expected $region, the region of ZONE" \
      "(elsewhere is slow and its traffic costs)"
  if [[ "$SERVICE_ACCOUNT" ]]; then
    output=$(limit=120 cloud iam service-accounts describe "$SERVICE_ACCOUNT" \
      "--project=$PROJECT" 2>&1) || fail "SERVICE_ACCOUNT can't be used:" \
      "$(error_line <(echo "$output")); nothing was rented"
  fi
  run "$python" -m bert_jax.preflight "--workdir=$WORKDIR" ||
    fail "$WORKDIR can't hold checkpoints (see above); nothing was rented"
  check_cost
}

# upload_all: the code, what the config names, and the token ids. The text
# stays here: the chips shall not wait for it.
upload_all() {
  local archive
  run "$python" -m bert_jax.prepare "--config=$CONFIG" \
    "--workdir=$state_dir/prepared" "--config.corpus.dir=$CORPUS" \
    "${config_flags[@]}" "${init_flags[@]}" || exit
  say "upload: code, and token ids in $CORPUS, to $WORKDIR"
  limit=0 cloud storage rsync --recursive "$CORPUS" "$WORKDIR/corpus" || exit
  if is_here "$vocab_file"; then
    cloud storage cp "$vocab_file" "$WORKDIR/inputs/vocab.txt" || exit
  fi
  if [[ "$init" ]]; then
    limit=0 cloud storage rsync --recursive "$init" "$WORKDIR/inputs/init" ||
      exit
  fi
  # The same bytes for the same code; a slice keeps the code it began with.
  archive="$state_dir/bert_jax.tar.gz"
  run tar --create --gzip --file "$archive" --sort=name --mtime=@0 \
    --owner=0 --group=0 --numeric-owner --exclude=__pycache__ \
    --exclude=launch/settings.sh --exclude='*.egg-info' \
    bert_jax configs launch setup.py README.md
  code=HASH
  "$dry_run" || code=$(tar -xzOf "$archive" | sha256sum | cut -c 1-16)
  cloud storage cp "$archive" "$WORKDIR/code/$code.tar.gz" || exit
}
