#!/usr/bin/env bash
# Set-up, format, lint, types and the test suite: what continuous integration runs.
# Usage: bash tools/check.sh [pytest arguments]
#   bash tools/check.sh                         everything
#   bash tools/check.sh -m "not slow"           the fast tests
#   bash tools/check.sh tests/ops -k windows    some tests, in one process
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy

# Without a path the tests share all cores: one process per core (and 1 GiB each), one thread in each.
case " $* " in
  *' tests'*) parallel=() ;;
  *)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    parallel=(-n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder)
    ;;
esac
# tests start processes of their own, which threads that spin at a barrier would starve
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
exec .venv/bin/python -m pytest "${parallel[@]}" "$@"
