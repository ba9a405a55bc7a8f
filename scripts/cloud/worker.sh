#!/usr/bin/env bash
# On a machine: install the package, and keep a command running there.
#
#   worker.sh install EXTRAS   make .venv with the package and extras, as tpu,gcs; show the devices
#   worker.sh start COMMAND…   start a command that outlives the connection
#   worker.sh loop COMMAND…    the same in the foreground
#   worker.sh status           its state and the last lines of its log
#   worker.sh stop             ask it to save and end, and wait for that
#
# A command that ends is started again, unless that cannot help: after the exit codes 0 (done),
# 1 (a bug), 2 (a mistake), 4 (diverged) and 130 (Ctrl-C), after a signal to this script, and after
# MAX_QUICK starts in succession that lasted less than QUICK_S seconds each.
#
# Settings:
#   RUN_DIR    log, process number and exit code are here     (~/run)
#   PAUSE_S    seconds before the next start                  (60)
#   QUICK_S    a start that is shorter is a quick one         (600)
#   MAX_QUICK  so many quick ones in succession are too many  (10)
#   PYTHON     version of Python that `install` uses          (3.12)
set -euo pipefail

RUN_DIR=${RUN_DIR:-$HOME/run}
PAUSE_S=${PAUSE_S:-60}
QUICK_S=${QUICK_S:-600}
MAX_QUICK=${MAX_QUICK:-10}
PYTHON=${PYTHON:-3.12}
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
SELF=$ROOT/scripts/cloud/worker.sh

fail() {
  printf 'worker.sh: %s\n' "$1" >&2
  exit 2
}

say() {
  printf 'worker.sh: %s: %s\n' "$(date -u +%FT%TZ)" "$1"
}

install() {
  cd "$ROOT"
  python3 -m pip install --quiet --user uv
  "$HOME/.local/bin/uv" venv --quiet --allow-existing --python "$PYTHON" .venv
  "$HOME/.local/bin/uv" pip install --quiet --python .venv/bin/python -e ".[$1]"
  .venv/bin/python -c 'import jax; print(jax.local_devices())'
}

is_running() {
  [ -s "$RUN_DIR/pid" ] && kill -0 "$(cat "$RUN_DIR/pid")" 2> /dev/null
}

child='' signalled=''

forward() {
  signalled=1
  [ -z "$child" ] || kill -TERM "$child" 2> /dev/null || true
}

# Waits for the child, also after a signal has ended a wait.
wait_for_child() {
  local code=0
  wait "$child" || code=$?
  while kill -0 "$child" 2> /dev/null; do
    code=0
    wait "$child" || code=$?
  done
  return "$code"
}

loop() {
  local code began quick=0
  trap forward TERM HUP
  while true; do
    began=$SECONDS code=0
    "$@" &
    child=$!
    wait_for_child || code=$?
    child=''
    say "exit code $code after $((SECONDS - began)) s"
    case $code in 0 | 1 | 2 | 4 | 130) return "$code" ;; esac
    [ -z "$signalled" ] || return "$code"
    quick=$((SECONDS - began < QUICK_S ? quick + 1 : 0))
    if [ "$quick" -ge "$MAX_QUICK" ]; then
      say "it ended $quick times in succession within $QUICK_S s: no further start"
      return "$code"
    fi
    sleep "$PAUSE_S" &
    child=$!
    wait_for_child || true
    [ -z "$signalled" ] || return "$code"
  done
}

# The background part of `start`: leaves the exit code in a file.
loop_to_file() {
  local code=0
  loop "$@" || code=$?
  echo "$code" > "$RUN_DIR/exit"
}

start() {
  mkdir -p "$RUN_DIR"
  ! is_running || fail "a command runs already (process $(cat "$RUN_DIR/pid")): stop it first"
  rm -f "$RUN_DIR/exit"
  cd "$ROOT"
  setsid "$SELF" loop-to-file "$@" < /dev/null >> "$RUN_DIR/log" 2>&1 &
  echo $! > "$RUN_DIR/pid"
}

status() {
  if [ -f "$RUN_DIR/exit" ]; then
    echo "ended with exit code $(cat "$RUN_DIR/exit")"
  elif is_running; then
    echo "runs as process $(cat "$RUN_DIR/pid")"
  else
    echo 'does not run'
  fi
  [ ! -f "$RUN_DIR/log" ] || tail -n 20 "$RUN_DIR/log"
}

stop() {
  is_running || { echo 'does not run' && return 0; }
  kill -TERM "$(cat "$RUN_DIR/pid")"
  while is_running; do sleep 1; done
  status
}


command=${1:-}
shift || true
case $command in
  install) install "${1:?give extras, as tpu,gcs}" ;;
  start | loop | loop-to-file)
    [ "$#" -gt 0 ] || fail "$command what? give a command"
    "${command//-/_}" "$@"
    ;;
  status | stop) "$command" ;;
  *) fail "${command:-nothing} is no command: install, start, loop, status and stop are" ;;
esac
