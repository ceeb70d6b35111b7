#!/usr/bin/env bash
# Runs the tests in .venv, which it makes if needed; arguments go to pytest.
#
#   bash launch/test.sh [-k NAME ...]
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/install.sh test
exec .venv/bin/python -m pytest "$@"
