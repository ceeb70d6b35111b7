#!/usr/bin/env bash
# Runs the fast tests in .venv, which it makes if needed.
#
#   bash launch/test.sh            the fast tests, on two processes
#   bash launch/test.sh --all      all tests
#   bash launch/test.sh -k NAME    other arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/install.sh test
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
