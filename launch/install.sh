#!/usr/bin/env bash
# Makes .venv and installs the project in it; does nothing if that is done.
#
#   bash launch/install.sh [EXTRA]     EXTRA: test, tpu or cuda
#
# PYTHON chooses the interpreter (3.11, 3.12 or 3.13).
set -euo pipefail
cd "$(dirname "$0")/.."
extra="${1:-}"

if [[ ! -x .venv/bin/python ]]; then
  python="${PYTHON:-python3}"
  if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; then
    echo "error: $python is $("$python" --version 2>&1); expected Python 3.11" \
      "to 3.13 (choose one with PYTHON=python3.12)" >&2
    exit 2
  fi
  echo "install: making .venv with $("$python" --version)"
  "$python" -m venv .venv
fi

# The stamp holds what was installed: another setup.py installs again.
stamp=".venv/installed${extra:+-$extra}"
if ! cmp -s setup.py "$stamp"; then
  echo "install: bert_jax${extra:+[$extra]} and what it needs, a few minutes"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --editable ".${extra:+[$extra]}"
  cp setup.py "$stamp"
fi
