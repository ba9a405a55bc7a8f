# shellcheck shell=bash disable=SC2034
# What tpu.sh and gke.sh share. It is read by them, not run.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
DRY_RUN=${DRY_RUN:-}

# Ends with one line and exit code 2.
fail() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit 2
}

say() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
}

# Requires a setting: need NAME 'what it is'.
need() {
  [ -n "${!1:-}" ] || fail "set $1: $2"
}

# Requires a setting that is a whole number.
need_number() {
  [[ ${!1} =~ ^[0-9]+$ ]] || fail "$1=${!1}: write a whole number"
}

# Requires a setting that is 0 or 1.
need_switch() {
  [[ ${!1} =~ ^[01]$ ]] || fail "$1=${!1}: write 0 or 1"
}

# Requires a workdir that all machines reach and that outlives them.
need_bucket() {
  need WORKDIR 'the workdir in a bucket, gs://BUCKET/runs/NAME'
  [[ $WORKDIR == gs://?*/?* ]] || fail "WORKDIR=$WORKDIR: write gs://BUCKET/runs/NAME"
}

# Prints words as a shell reads them, with quotes where they are needed.
quoted() {
  local word words=()
  for word in "$@"; do
    [[ $word =~ ^[-A-Za-z0-9_./:=,@%+]+$ ]] || word=${word@Q}
    words+=("$word")
  done
  echo "${words[*]}"
}

# Runs a command, or prints it with --dry-run.
run() {
  if [ -n "$DRY_RUN" ]; then
    quoted "$@"
  else
    "$@"
  fi
}

# Asks before something is deleted, unless --yes was given.
confirm() {
  [ -z "${YES:-}${DRY_RUN}" ] || return 0
  [ -t 0 ] || fail "$1: give --yes"
  read -r -p "$1? [y/N] " answer
  [[ $answer == [yY]* ]] || fail 'nothing was deleted'
}

# Takes --dry-run and --yes off the front of the arguments; the rest is in ARGUMENTS.
read_options() {
  while [[ ${1:-} == --* ]]; do
    case $1 in
      --dry-run) DRY_RUN=1 ;;
      --yes) YES=1 ;;
      *) fail "$1 is no option: --dry-run and --yes are" ;;
    esac
    shift
  done
  ARGUMENTS=("$@")
}

# Refuses what the script gives itself.
need_train_flags() {
  local flag
  [ "$#" -gt 0 ] || fail 'give the flags of train, as --config=configs/wmt14.py:en-de,base'
  for flag in "$@"; do
    case $flag in
      --workdir=*) fail "$flag: set WORKDIR instead" ;;
      --distributed) fail "$flag: the script gives it" ;;
      --*) ;;
      *) fail "$flag: only the flags of train, as --config=configs/wmt14.py:en-de,base" ;;
    esac
  done
}

# Copies the results of a run from its bucket, without checkpoints: fetch FOLDER.
fetch() {
  need_bucket
  [ -n "${1:-}" ] || fail 'fetch to where? give a folder'
  run mkdir -p "$1"
  run gcloud storage rsync --recursive --exclude='(^|.*/)checkpoints/.*' "$WORKDIR" "$1"
}
