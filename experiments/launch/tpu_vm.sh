#!/bin/bash
# One run on all hosts of a Cloud TPU VM slice, whose ~/ssm-lab is this checkout with its
# requirements installed (pip install -e '.[experiments,tpu]'):
#
#   experiments/launch/tpu_vm.sh TPU ZONE configs/lra/listops.py:lru gs-mounted/dir
#
# The working directory must be one that all hosts share. What follows the first four
# arguments goes to the command as it is.
set -euo pipefail

tpu=$1 zone=$2 config=$3 workdir=$4
shift 4

command="python -m experiments.main --distributed=on"
command+=$(printf ' %q' --config="$config" --workdir="$workdir" "$@")

# 75: pre-empted after saving. The same command goes on from there.
until gcloud compute tpus tpu-vm ssh "$tpu" --zone="$zone" --worker=all \
  --command="cd ssm-lab && $command"; do
  code=$?
  [ "$code" -eq 75 ] || exit "$code"
done
