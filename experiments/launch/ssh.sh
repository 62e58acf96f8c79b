#!/bin/bash
# The command on several hosts at once, one process each, over plain ssh:
#
#   experiments/launch/ssh.sh [--dry-run] HOST,HOST,... CONFIG DIR [FLAGS]
#
# Each host has this checkout in ~/ssm-lab (or REMOTE), its requirements installed, and
# DIR on a disk that all share. The first one coordinates, at PORT (8476), under the
# name by which it is called here. Control-C or a SIGTERM here has all hosts save and
# end, and so has one that fails.
set -euo pipefail
# shellcheck source=experiments/launch/show.sh
. "$(dirname "$0")/show.sh"

dry_run=
if [[ ${1-} == --dry-run ]]; then dry_run=yes; shift; fi
usage='usage: ssh.sh [--dry-run] HOST,HOST,... CONFIG DIR [FLAGS]'
hosts=${1:?$usage} config=${2:?$usage} workdir=${3:?$usage}
shift 3
IFS=, read -ra hosts <<<"$hosts"
coordinator=${hosts[0]#*@}:${PORT:-8476}

remote() {  # what host $1 of all runs: the command, ended when this script goes away
  local id=$1
  shift
  printf 'cd %q && { python -m experiments.main' "${REMOTE:-ssm-lab}"
  printf ' %q' --config="$config" --workdir="$workdir" \
    --coordinator_address="$coordinator" --process_count="${#hosts[@]}" \
    --process_id="$id" "$@"
  # Standard input ends with the connection, and with this script.
  # shellcheck disable=SC2016
  printf ' </dev/null & run=$!; { cat; kill -TERM $run; } <&3 >/dev/null 2>&1 & '
  # shellcheck disable=SC2016
  printf 'wait $run; code=$?; kill $! 2>/dev/null; exit $code; } 3<&0'
}

if [[ $dry_run ]]; then
  for id in "${!hosts[@]}"; do show ssh "${hosts[id]}" "$(remote "$id" "$@")"; done
  exit
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkfifo "$folder/alive"
exec {alive}<>"$folder/alive"  # a pipe without an end, until it is closed
stop() { exec {alive}>&-; }
interrupted=
trap 'interrupted=yes; stop' INT TERM
for id in "${!hosts[@]}"; do
  command=$(remote "$id" "$@")
  # shellcheck disable=SC2029
  ssh "${hosts[id]}" "$command" <"$folder/alive" {alive}>&- &
done

# The code of the first host that did not finish: 75 if it was pre-empted.
result=0
for _ in "${hosts[@]}"; do
  while code=0; wait -n || code=$?; [[ $interrupted ]]; do interrupted=; done
  [[ $code -eq 0 ]] || stop
  [[ $result -ne 0 ]] || result=$code
done
exit "$result"
