#!/usr/bin/env bash
# The whole job on a bare machine: set-up, simulated data, training, official evaluation, pictures.
# Usage: bash tools/quickstart.sh [--fresh] [--seed N] [--out DIR]
set -euo pipefail
case "${1:-}" in -h|--help) sed -n '2,3s/^# //p' "$0"; echo "Details: .venv/bin/python tools/quickstart.py --help"; exit 0 ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh
exec .venv/bin/python -W ignore tools/quickstart.py "$@"
