# Settings of one run on a TPU slice. Copy this file, edit the copy:
#
#   cp launch/settings.example.sh launch/settings.sh
#
# Nothing in it is secret; launch/README.md walks through it.
# shellcheck shell=bash disable=SC2034  # read by pod_settings.sh

# The Google Cloud project that pays, by its ID.
PROJECT=my-project
# Where the slice stands; the bucket must lie in the same region.
ZONE=us-west4-a
# Names the run, the slice and the folder in the bucket.
NAME=my-bert

# queued-resources (v4, v5e, v5p, v6e) or instance-group (v5p, v6e).
BACKEND=queued-resources
# v5litepod-N and v6e-N have N chips, v4-N and v5p-N have N / 2.
ACCELERATOR_TYPE=v5litepod-16
# Software of the machines; empty takes the one documented for the type.
RUNTIME_VERSION=
# yes costs less and may be taken away at any moment; `up` brings it back.
SPOT=yes
# What to ask for instead of what SPOT says, such as (--reserved).
CAPACITY_FLAGS=()
# yes if the machines get no external addresses (then Cloud NAT is needed).
INTERNAL_IPS=no
# Whom the machines act as: must read and write the bucket. Empty: the default.
SERVICE_ACCOUNT=
# Whom gcloud acts as here, such as me@example.com. Empty: whom it uses now.
ACCOUNT=

# Checkpoints, figures and logs go to BUCKET/NAME.
BUCKET=gs://my-bucket
# What to train, as for `python -m bert_jax.train`.
CONFIG=configs/bert_base.py
OVERRIDES=(
  --config.corpus.source='texts/*.txt.gz'
)
# Folder here for the token ids; made from the text if it is not there.
CORPUS=runs/my-bert/corpus

# What one chip costs an hour, from the price list, and what the run may cost
# in the same currency. `up` asks for no more, and stops at it.
PRICE_PER_CHIP_HOUR=1.20
BUDGET=150
# How often `up` looks at the slice.
POLL_SECONDS=30
