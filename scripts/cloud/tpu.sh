#!/usr/bin/env bash
# A run on a Cloud TPU VM or a pod slice, from creation to deletion.
#
#   tpu.sh [--dry-run] create         create the machines and wait for them
#   tpu.sh [--dry-run] install        copy this folder to all hosts, and install it there
#   tpu.sh [--dry-run] run FLAGS…     start `transformer-jax train FLAGS…` on all hosts; returns
#   tpu.sh [--dry-run] watch FLAGS…   create, install and run, and again after each preemption;
#                                     ends with the run, and with its exit code
#   tpu.sh [--dry-run] status         state of the machines and of the run, end of its log
#   tpu.sh [--dry-run] stop           save a checkpoint and end the run
#   tpu.sh [--dry-run] fetch FOLDER   copy the results, without checkpoints
#   tpu.sh [--dry-run] [--yes] delete delete the machines; the workdir stays
#
# --dry-run prints the commands instead of running them.
#
# Settings (a value in parentheses is the default):
#   TPU      name of the machines
#   ZONE     zone, as europe-west4-b
#   TYPE     type, as v5litepod-8 (one host) or v5litepod-32 (8 hosts)
#   VERSION  software of the machines                              (v2-alpha-tpuv5-lite)
#   WORKDIR  workdir of the run, gs://BUCKET/runs/NAME
#   PROJECT  project of Google Cloud                               (that of gcloud)
#   QUEUED   1: ask by a queued resource; 0: create at once        (1)
#   SPOT     1: cheaper machines that may be taken away            (1)
#   POLL_S   seconds between two looks at the state                (60)
set -euo pipefail
# shellcheck source=scripts/cloud/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

VERSION=${VERSION:-v2-alpha-tpuv5-lite}
QUEUED=${QUEUED:-1}
SPOT=${SPOT:-1}
POLL_S=${POLL_S:-60}

# Sets PLACE, the flags of every command.
check_settings() {
  need TPU 'the name of the machines'
  need ZONE 'the zone, as europe-west4-b'
  need_switch QUEUED
  need_switch SPOT
  need_number POLL_S
  PLACE=("--zone=$ZONE")
  [ -z "${PROJECT:-}" ] || PLACE+=("--project=$PROJECT")
}

# Prints the state of the machines: ACTIVE or READY, WAITING_FOR_RESOURCES, SUSPENDED, …
state() {
  if [ -n "$DRY_RUN" ]; then
    echo ACTIVE
  elif [ "$QUEUED" = 1 ]; then
    gcloud compute tpus queued-resources describe "$TPU" "${PLACE[@]}" \
      '--format=value(state.state)'
  else
    gcloud compute tpus tpu-vm describe "$TPU" "${PLACE[@]}" '--format=value(state)'
  fi
}

# Asks for the machines.
request() {
  local spot=()
  need TYPE 'the type of the machines, as v5litepod-8'
  [ "$SPOT" = 0 ] || spot=(--spot)
  if [ "$QUEUED" = 1 ]; then
    run gcloud compute tpus queued-resources create "$TPU" "${PLACE[@]}" "--node-id=$TPU" \
      "--accelerator-type=$TYPE" "--runtime-version=$VERSION" "${spot[@]}"
  else
    run gcloud compute tpus tpu-vm create "$TPU" "${PLACE[@]}" \
      "--accelerator-type=$TYPE" "--version=$VERSION" "${spot[@]}"
  fi
}

create() {
  local found
  request
  while true; do
    found=$(state) || found=unknown
    case $found in
      ACTIVE | READY) return ;;
      FAILED | SUSPENDED | PREEMPTED) fail "$TPU is $found: delete it, and try again or elsewhere" ;;
    esac
    say "$TPU is $found"
    sleep "$POLL_S"
  done
}

# Runs a command on hosts: on_hosts all|0 COMMAND.
on_hosts() {
  run gcloud compute tpus tpu-vm ssh "$TPU" "${PLACE[@]}" "--worker=$1" "--command=$2"
}

install() {
  local archive=${TMPDIR:-/tmp}/transformer_jax-$TPU.tar.gz
  # With .git: run.json says which commit was run.
  run tar --create --gzip "--file=$archive" "--directory=$ROOT" '--exclude=./.venv*' \
    --exclude=./runs --exclude=__pycache__ . &&
    run gcloud compute tpus tpu-vm scp "$archive" "$TPU:transformer_jax.tar.gz" "${PLACE[@]}" \
      --worker=all &&
    on_hosts all 'mkdir -p transformer_jax && tar xzf transformer_jax.tar.gz -C transformer_jax &&
transformer_jax/scripts/cloud/worker.sh install tpu,gcs'
}

start() {
  local command
  need_bucket
  need_train_flags "$@"
  command=$(quoted transformer_jax/scripts/cloud/worker.sh start \
    .venv/bin/transformer-jax train --distributed "--workdir=$WORKDIR" "$@")
  on_hosts all "$command"
}

# Prints the exit code of the run on host 0, or `running`, or `none` where none was started.
ask_run() {
  # shellcheck disable=SC2016
  on_hosts 0 'cat run/exit 2> /dev/null ||
{ [ -s run/pid ] && kill -0 "$(cat run/pid)" 2> /dev/null && echo running; } || echo none'
}

remove() {
  if [ "$QUEUED" = 1 ]; then
    run gcloud compute tpus queued-resources delete "$TPU" "${PLACE[@]}" --force --quiet
  else
    run gcloud compute tpus tpu-vm delete "$TPU" "${PLACE[@]}" --quiet
  fi
}

watch() {
  local found answer begun=''
  need_bucket
  need_train_flags "$@"
  if [ -n "$DRY_RUN" ]; then
    create
    install
    start "$@"
    return
  fi
  while true; do
    if ! found=$(state 2>&1); then
      # Another failure says nothing of the machines: nothing is done because of it.
      [[ $found == *NOT_FOUND* ]] && found=absent || found=unknown
    fi
    case $found in
      absent) request || say "$TPU could not be requested" ;;
      SUSPENDED | FAILED | PREEMPTED)
        say "$TPU is $found: it is created again"
        begun=''
        { remove && request; } || say "$TPU could not be created again yet"
        ;;
      ACTIVE | READY)
        answer=$(ask_run) || answer=unknown
        [ "$answer" != running ] || begun=1
        if [ -z "$begun" ] && [[ $answer =~ ^(none|[0-9]+)$ ]]; then
          # The exit code is that of an earlier run.
          if install && start "$@"; then begun=1; else say 'it could not be started yet'; fi
        elif [[ $answer =~ ^[0-9]+$ ]]; then
          say "the run ended with exit code $answer"
          exit "$answer"
        fi
        ;;
    esac
    sleep "$POLL_S"
  done
}

read_options "$@"
set -- "${ARGUMENTS[@]}"
command=${1:-}
shift || true
case $command in
  create | install | watch | fetch)
    check_settings
    "$command" "$@"
    ;;
  run)
    check_settings
    start "$@"
    ;;
  status)
    check_settings
    say "$TPU is $(state)"
    on_hosts 0 'transformer_jax/scripts/cloud/worker.sh status'
    ;;
  stop)
    check_settings
    on_hosts all 'transformer_jax/scripts/cloud/worker.sh stop'
    ;;
  delete)
    check_settings
    confirm "delete $TPU in $ZONE"
    remove
    ;;
  *)
    fail "${command:-nothing} is no command: create, install, run, watch, status, stop, fetch and \
delete are"
    ;;
esac
