#!/usr/bin/env bash
# Builds .venv with everything stratified3d needs; `tools/setup.sh --help` tells the rest.
set -euo pipefail
[ ! -d "${STRATIFIED3D_WHEELS:-}" ] || STRATIFIED3D_WHEELS=$(cd "$STRATIFIED3D_WHEELS" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'TEXT'
Usage: bash tools/setup.sh [--device cpu|gpu] [--fresh]

Creates .venv with the versions of tools/constraints.txt and installs stratified3d into it (editable).
Safe to run again: a finished set-up is recognized in seconds, an interrupted one goes on.

  --device cpu|gpu   default: gpu where nvidia-smi lists one, else cpu
  --fresh            delete .venv first

Environment:
  PYTHON                 the interpreter to use (3.10 to 3.12; default: python3.11, else python3)
  STRATIFIED3D_WHEELS    a folder of wheels, e.g. a prebuilt mmcv; without it mmcv 2.1.0 is compiled
                         from its sdist (a few minutes on two cores)
  pip's own variables are honoured

Examples:
  bash tools/setup.sh
  STRATIFIED3D_WHEELS=~/wheels bash tools/setup.sh --device cpu
TEXT
}

device='' fresh=''
while [ $# -gt 0 ]; do
  case $1 in
    --device)
      [ $# -gt 1 ] || { echo "setup.sh: --device needs a value, cpu or gpu" >&2; exit 2; }
      device=$2; shift ;;
    --fresh) fresh=1 ;;
    -h|--help) usage; exit 0 ;;
    *) echo "setup.sh: unknown option '$1'; see bash tools/setup.sh --help" >&2; exit 2 ;;
  esac
  shift
done
[ -n "$device" ] || { device=cpu; nvidia-smi -L >/dev/null 2>&1 && device=gpu; }
case $device in cpu|gpu) ;; *) echo "setup.sh: --device is cpu or gpu, not '$device'" >&2; exit 2 ;; esac

if [ -z "${PYTHON:-}" ]; then PYTHON=$(command -v python3.11 || command -v python3 || true); fi
if ! "${PYTHON:-false}" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
  echo "setup.sh: '${PYTHON:-python3}' is no Python 3.10 to 3.12 (tested: 3.11)." \
       "Install python3.11 and its -venv and -dev packages, or name one: PYTHON=/path/to/python3.11 bash tools/setup.sh" >&2
  exit 1
fi
if [ -n "${STRATIFIED3D_WHEELS:-}" ] && [ ! -d "$STRATIFIED3D_WHEELS" ]; then
  echo "setup.sh: STRATIFIED3D_WHEELS='$STRATIFIED3D_WHEELS' is no folder; correct it or unset it" >&2
  exit 1
fi

stamp=.venv/stratified3d-setup
want=$(cat tools/setup.sh tools/build_mmcv.sh tools/join_mmcv_sources.py tools/constraints.txt pyproject.toml | sha256sum | cut -c1-16)-$device
[ -z "$fresh" ] || rm -rf .venv
if [ "$(cat $stamp 2>/dev/null || true)" = "$want" ]; then
  echo "set-up: .venv is up to date ($device); --fresh builds it anew"
  exit 0
fi

started=$SECONDS
if [ ! -x .venv/bin/python ]; then
  "$PYTHON" -m venv .venv || { echo "setup.sh: could not create .venv: on Debian and Ubuntu install python3-venv" >&2; exit 1; }
fi
log=.venv/setup.log
: > "$log"
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

# follow TITLE PID LOG: waits for a background command, showing elapsed time and, for compilers, the files done.
follow() {
  local title=$1 pid=$2 log=$3 begin=$SECONDS last='' pause=1
  echo "set-up: $title"
  while kill -0 "$pid" 2>/dev/null; do
    sleep $pause
    if [ -t 1 ]; then pause=2; else pause=$((pause < 60 ? pause + 2 : 60)); fi
    last=$(tail -c 4000 "$log" | grep -oE '\[[0-9]+/[0-9]+\]' | tail -n 1 || true)
    if [ -t 1 ]; then printf '\r  %4d s %s ' $((SECONDS - begin)) "$last"
    elif [ $((SECONDS - begin)) -ge 60 ]; then echo "  $((SECONDS - begin)) s $last"; fi
  done
  if ! wait "$pid"; then
    printf '\n'; tail -n 25 "$log" >&2
    echo "setup.sh: '$title' failed (full log: $log). Correct what the lines above name and run it again:" \
         "finished steps are kept." >&2
    exit 1
  fi
  if [ -t 1 ]; then printf '\r'; fi
  echo "  done in $((SECONDS - begin)) s          "
}

step() {
  local title=$1; shift
  "$@" >>"$log" 2>&1 &
  follow "$title" $! "$log"
}

# open3d needs libusb and libGL, off-screen pictures a software Vulkan, mmcv a compiler
packages='' wanted='libusb-1.0-0 libgl1 libegl1 libgomp1 libglib2.0-0 libvulkan1 mesa-vulkan-drivers g++'
if command -v dpkg-query >/dev/null; then
  for p in $wanted; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || packages="$packages $p"
  done
fi
if [ -n "$packages" ] && [ "$(id -u)" = 0 ]; then
  # shellcheck disable=SC2086
  step "system packages:$packages" bash -c 'apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"' _ $packages
elif [ -n "$packages" ]; then
  echo "set-up: missing system packages; ask an administrator for: apt-get install$packages"
fi

options=(--disable-pip-version-check --constraint tools/constraints.txt)
[ -z "${STRATIFIED3D_WHEELS:-}" ] || options+=(--find-links "$STRATIFIED3D_WHEELS")
pip=(.venv/bin/python -m pip install "${options[@]}")
# without a GPU torch's own index, where it can be reached, spares gigabytes of CUDA
torch_index=() url=https://download.pytorch.org/whl/cpu
if [ $device = cpu ] && "$PYTHON" -c "import urllib.request as u; u.urlopen('$url/torch/', timeout=5)" 2>/dev/null; then
  torch_index=(--extra-index-url "$url")
fi
pin() { grep "^$1==" tools/constraints.txt; }

# torch by its exact pin: a looser request may bring another build
step "$(pin torch) and build tools" "${pip[@]}" "${torch_index[@]}" "$(pin torch)" "$(pin numpy)" 'setuptools<81' wheel ninja psutil
mmcv_pid=''
if ! .venv/bin/python -c 'import mmcv, mmcv.ops' 2>/dev/null; then
  # one that is there was built for another torch, and pip would keep it for its version
  .venv/bin/python -m pip uninstall --yes mmcv >>"$log" 2>&1
  # compiled while the rest is fetched
  setsid bash tools/build_mmcv.sh "$(pin mmcv)" "${options[@]}" >.venv/mmcv.log 2>&1 &
  mmcv_pid=$!
  trap 'kill -- -$mmcv_pid 2>/dev/null || true; kill $(jobs -p) 2>/dev/null || true' EXIT
fi
# a torch for CUDA brings the triton that it needs, one for CPUs brings none
triton=()
.venv/bin/python -c 'import triton' 2>/dev/null || triton=(triton==3.6.0)
step "mmdet3d, spconv, open3d and stratified3d" "${pip[@]}" --no-build-isolation "${triton[@]}" -e ".[detection,$device,dev,survey,docs,notebook,deploy]"
if [ -n "$mmcv_pid" ]; then
  follow "$(pin mmcv), from STRATIFIED3D_WHEELS or compiled (a few minutes on two cores)" "$mmcv_pid" .venv/mmcv.log
  grep '^note: ' .venv/mmcv.log || true
  step "$(pin mmcv) into .venv" "${pip[@]}" .venv/wheels/*.whl
fi
step "check that everything imports" .venv/bin/python -c '
import mmcv.ops, mmdet3d.models, numba, open3d, spconv.pytorch, stratified3d, torch
print(torch.__version__)'
echo "$want" > "$stamp"
echo "set-up: finished in $((SECONDS - started)) s. Next: source .venv/bin/activate && python -m stratified3d.doctor"
