# For --dry-run of the launchers: `show COMMAND ARGUMENT ...` prints what a shell takes.
# shellcheck shell=bash

show() {
  local word line=()
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=@,+-]+$ ]] || word=${word@Q}
    line+=("$word")
  done
  echo "${line[*]}"
}
