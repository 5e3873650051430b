#!/usr/bin/env bash
# mp_e_form at scale, fold 0: the preset, its twin from random weights, three seeds, and members that differ.
#
#   bash benchmarks/scale.sh DATA OUT [PUBLISHED] [-- OPTIONS]
#
# DATA is mp_e_form in Matbench's layout, whole or in part; PUBLISHED a CSV of published test predictions, scored on the
# same rows. OPTIONS go to every `crystaltune train`, such as `--processes 1` or `--device cuda --per-gpu 4`. Every run
# resumes what its folder holds, so stop it whenever you like and repeat the line: it goes on where it ended. The table
# is printed after each run, and at any time by `python benchmarks/scale.py OUT`.
set -euo pipefail
usage="usage: bash benchmarks/scale.sh DATA OUT [PUBLISHED] [-- OPTIONS]"
data=${1:?$usage}
out=${2:?$usage}
shift 2
published=()
if [[ $# -gt 0 && $1 != "--" ]]; then
  published=(--published "$1")
  shift
fi
[[ ${1:-} == "--" ]] && shift
here=$(dirname "$0")

run() {
  local name=$1
  shift
  crystaltune train mp_e_form --data "$data" --folds 0 --out "$out/$name" ${published[@]+"${published[@]}"} "$@"
  python "$here/scale.py" "$out"
}

run preset "$@"
run scratch --set model.start=scratch "$@"
run three-seeds --set ensemble.members=3 "$@"
run two-starts --set 'ensemble.vary.model.start=[0.3.0,r2scan]' --set ensemble.combine=greedy "$@"
