#!/bin/bash
# The command as a managed job of SkyPilot, on spot machines of any cloud:
#
#   experiments/launch/skypilot.sh [--dry-run] [SKY OPTIONS] CONFIG RUN [FLAGS]
#
#   experiments/launch/skypilot.sh --num-nodes=2 configs/lra/suite.py:lru lra
#
# Options of `sky jobs launch` are those before CONFIG, each in one word. The results
# lie in RUN inside the bucket that skypilot.yaml mounts.
set -euo pipefail
# shellcheck source=experiments/launch/show.sh
. "$(dirname "$0")/show.sh"

run=command options=(--yes)
while [[ ${1-} == -* ]]; do
  if [[ $1 == --dry-run ]]; then run=show; else options+=("$1"); fi
  shift
done
usage='usage: skypilot.sh [--dry-run] [SKY OPTIONS] CONFIG RUN [FLAGS]'
config=${1:?$usage} folder=${2:?$usage}
shift 2

flags=
[[ $# -eq 0 ]] || flags=$(printf '%q ' "$@")
"$run" sky jobs launch "${options[@]}" "$(dirname "$0")/skypilot.yaml" \
  --env CONFIG="$config" --env RUN="$folder" --env FLAGS="$flags"
