#!/usr/bin/env bash
# Set-up, lint and the test suite: what continuous integration runs, and what to run before a commit.
# Usage: bash tools/check.sh [pytest arguments]      e.g. bash tools/check.sh tests/ops -k windows
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh
.venv/bin/ruff format --check .
.venv/bin/ruff check .
# the whole suite takes every core, one process each (and a GiB each), so that one thread in each is best
if [ $# -eq 0 ]; then
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  set -- -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder
fi
# tests start processes of their own, and threads that spin at a barrier would starve them
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
exec .venv/bin/python -m pytest "$@"
