#!/bin/bash
# The command on all hosts of a Cloud TPU VM slice, whose ~/ssm-lab is this checkout
# with its requirements installed (pip install -e '.[experiments,tpu]'):
#
#   experiments/launch/tpu_vm.sh [--dry-run] TPU ZONE CONFIG DIR [FLAGS]
#
# DIR must be one that all hosts share and that outlives them. A slice that is taken
# away is waited for, as a queued resource brings it back, and the same command goes on;
# its start-up script has to bring the checkout.
set -euo pipefail
# shellcheck source=experiments/launch/show.sh
. "$(dirname "$0")/show.sh"

run="command"
if [[ ${1-} == --dry-run ]]; then run=show; shift; fi
usage='usage: tpu_vm.sh [--dry-run] TPU ZONE CONFIG DIR [FLAGS]'
tpu=${1:?$usage} zone=${2:?$usage} config=${3:?$usage} workdir=${4:?$usage}
shift 4
wait=${TPU_WAIT_SECONDS:-30}  # before a slice is asked how it is

command="cd ssm-lab && python -m experiments.main --distributed=on"
command+=$(printf ' %q' --config="$config" --workdir="$workdir" "$@")
tell() {
  "$run" gcloud compute tpus tpu-vm ssh "$tpu" --zone="$zone" --worker=all \
    --command="$command"
}
state() {
  gcloud compute tpus tpu-vm describe "$tpu" --zone="$zone" --format='value(state)' ||
    true
}

# 75: pre-empted after saving. Any other code of a slice that is there is an error.
while true; do
  code=0
  tell || code=$?
  [[ $code -ne 0 ]] || exit 0
  sleep "$wait"
  if [[ $(state) == READY ]]; then
    [[ $code -eq 75 ]] || exit "$code"
  else
    echo "$tpu is not there: waiting for it" >&2
    until [[ $(state) == READY ]]; do sleep "$wait"; done
  fi
done
