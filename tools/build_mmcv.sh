#!/usr/bin/env bash
# Puts one wheel of mmcv, and nothing else, into .venv/wheels: a prebuilt one that pip finds, else compiled from the sdist.
# Usage: bash tools/build_mmcv.sh mmcv==VERSION [pip options]; tools/setup.sh calls it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
pin=$1; shift
python=.venv/bin/python
pip=("$python" -m pip)
options=(--no-deps --no-build-isolation "$@")

# CPU operators only, also on a GPU machine: no model path of ours calls a CUDA operator of mmcv. Debug symbols would
# take a third of the time.
export CFLAGS="-g0 -O2 ${CFLAGS:-}" MMCV_WITH_OPS=1 FORCE_CUDA=0 CUDA_VISIBLE_DEVICES='' MAX_JOBS=${MAX_JOBS:-$(nproc)}

sources=.venv/mmcv
rm -rf "$sources"
"${pip[@]}" download "${options[@]}" --dest "$sources" "$pin"
rm -rf .venv/wheels  # of an interrupted run
mkdir .venv/wheels
if wheel=$(compgen -G "$sources/*.whl"); then
  "$python" -m zipfile -e "$wheel" "$sources/tried"
  if "$python" -c 'import sys, torch; sys.path.append(sys.argv[1]); import _ext' "$sources/tried/mmcv"; then
    mv "$wheel" .venv/wheels/
    exit 0
  fi
  echo "note: ${wheel##*/} was built for another torch than the $("$python" -c 'import torch; print(torch.__version__)') here, see above; compiling mmcv instead"
  rm "$wheel"
  "${pip[@]}" download "${options[@]}" --no-binary mmcv --dest "$sources" "$pin"
fi

# of 77 files each parses torch's headers, which takes most of its time
mkdir "$sources/joined"
tar -xzf "$sources"/*.tar.gz -C "$sources/joined" --strip-components 1
if "$python" tools/join_mmcv_sources.py "$sources/joined" &&
   "${pip[@]}" wheel "${options[@]}" -v --wheel-dir .venv/wheels "$sources/joined"; then
  exit 0
fi
echo "note: the joined sources did not compile, see above; now each of the 77 files by itself (10 to 14 minutes on two cores)"
"${pip[@]}" wheel "${options[@]}" -v --wheel-dir .venv/wheels "$sources"/*.tar.gz
