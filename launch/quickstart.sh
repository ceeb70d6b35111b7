#!/usr/bin/env bash
# From raw text to a filled mask in a few minutes, on two CPU cores.
#
#   bash launch/quickstart.sh [--config.KEY=VALUE ...]
#
# WORKDIR chooses the folder of the run (runs/quickstart). Run it again: what is
# done stays done, what was interrupted goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
workdir="${WORKDIR:-runs/quickstart}"
config=configs/quickstart.py
python=.venv/bin/python

bash launch/install.sh
started=$SECONDS

# The TPU's library, which the tests install, would search for one at length.
if ! compgen -G "/dev/accel*" >/dev/null && ! compgen -G "/dev/vfio/*" \
  >/dev/null && ! compgen -G "/dev/nvidia*" >/dev/null; then
  export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
fi

echo
echo "== 1. Train: text, vocabulary, token ids, then both phases =="
"$python" -m bert_jax.train --config="$config" --workdir="$workdir" "$@"

echo
echo "== 2. Export to Hugging Face's form =="
"$python" -m bert_jax.export --workdir="$workdir" --output="$workdir/export"

echo
echo "== 3. Fill masks with the exported folder =="
"$python" -m bert_jax.fill_mask --model="$workdir/export" \
  --text="the congress of the united [MASK] ." \
  --text="we must [MASK] the rights of our citizens ." \
  --text="the secretary of the [MASK] has made his annual report ."

echo
echo "== 4. The learning curve =="
"$python" -m bert_jax.curve --workdir="$workdir"

echo
echo "== 5. What the figures mean, on held-out documents =="
"$python" -m bert_jax.evaluate --workdir="$workdir"

cat <<EOF

Done in $((SECONDS - started)) seconds.
  $workdir/export         the model; transformers loads it from here
  $workdir/curve.png      the learning curve
  $workdir/metrics.jsonl  every figure, a line each; tensorboard/ has the same
  $workdir/corpus         token ids, boundaries and report.json
  $workdir/checkpoints    to go on from

Next, with a text of your own (a paragraph a line, a blank line between
documents):

  $python -m bert_jax.train --config=$config --workdir=runs/mine \\
    --config.corpus.source='texts/*.txt'
EOF
