#!/bin/bash
# Submits the command to SLURM; several runs, of seeds or of a suite, as an array:
#
#   experiments/launch/slurm.sh [--dry-run] [SBATCH OPTIONS] CONFIG DIR [FLAGS]
#
#   experiments/launch/slurm.sh --time=8:00:00 configs/lra/suite.py:lru runs/lra \
#     --config.seeds=0,1,2
#
# Options of sbatch are those before CONFIG, each in one word (--nodes=2). A run that is
# pre-empted is requeued and goes on; to try again what failed, give the command again.
set -euo pipefail
# shellcheck source=experiments/launch/show.sh
. "$(dirname "$0")/show.sh"

run=command options=()
while [[ ${1-} == -* ]]; do
  if [[ $1 == --dry-run ]]; then run=show; else options+=("$1"); fi
  shift
done
usage='usage: slurm.sh [--dry-run] [SBATCH OPTIONS] CONFIG DIR [FLAGS]'
config=${1:?$usage} workdir=${2:?$usage}
shift 2

run_all=(python -m experiments.main --config="$config" --workdir="$workdir" "$@")
plan=$("${run_all[@]}" --dry-run)
runs=$(grep -c '^# ' <<<"$plan")
[[ $runs -eq 1 ]] || options+=("--array=0-$((runs - 1))")
"$run" \
  sbatch "${options[@]}" "$(dirname "$0")/slurm.sbatch" "$config" "$workdir" "$@"
