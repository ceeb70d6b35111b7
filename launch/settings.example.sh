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
# spot: cheap, may be taken away at any moment, and `up` asks for it again.
# flex-start: up to 7 days, not taken away (instance-group only). on-demand.
CAPACITY=spot
# What to ask for instead of what CAPACITY says, such as (--reserved).
CAPACITY_FLAGS=()
# Hours that a request may wait in Google's queue before it lapses.
QUEUE_HOURS=24
# yes if the machines get no external addresses (then Cloud NAT is needed).
INTERNAL_IPS=no
# Whom the machines act as: writes the bucket, deletes the slice. Empty: the
# project's default account.
SERVICE_ACCOUNT=
# Whom gcloud acts as here, such as me@example.com. Empty: whom it uses now.
ACCOUNT=

# Checkpoints, figures and logs go to BUCKET/NAME.
BUCKET=gs://my-bucket
# What to train, as for `python -m bert_jax.train`. A vocabulary
# (--config.corpus.vocab_file) or a model to start from (--init, and then
# --extend_vocab and --init_optimizer) that lies here is uploaded.
CONFIG=configs/bert_base.py
OVERRIDES=(
  --config.corpus.source='texts/*.txt.gz'
)
# Folder here for the token ids; made from the text if it is not there.
CORPUS=runs/my-bert/corpus

# What one chip costs an hour, from the price list, and what the run may cost
# in the same currency. `up` asks for no more, and the slice ends at it.
PRICE_PER_CHIP_HOUR=1.20
BUDGET=150
# How often `up` looks at the slice, and how often its machines report.
POLL_SECONDS=30
