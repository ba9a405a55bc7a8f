#!/usr/bin/env bash
# A run on TPUs of a GKE cluster, by XPK, from creation to deletion.
#
#   gke.sh [--dry-run] create         create a cluster with TPU slices
#   gke.sh [--dry-run] install        build an image of this folder and push it
#   gke.sh [--dry-run] run FLAGS…     submit `transformer-jax train FLAGS…`; returns
#   gke.sh [--dry-run] status         state of the run, end of its log
#   gke.sh [--dry-run] [--yes] stop   save a checkpoint, end the run and forget it
#   gke.sh [--dry-run] fetch FOLDER   copy the results, without checkpoints
#   gke.sh [--dry-run] [--yes] delete delete the cluster with all that runs on it
#
# --dry-run prints the commands instead of running them.
#
# Settings (a value in parentheses is the default):
#   CLUSTER       name of the cluster
#   PROJECT       project of Google Cloud
#   ZONE          zone, as us-east5-b
#   TYPE          type of a slice, as v5litepod-32
#   SLICES        number of slices                              (1)
#   SPOT          1: cheaper machines that may be taken away    (1)
#   IMAGE         image, as REGION-docker.pkg.dev/PROJECT/REPOSITORY/transformer_jax:v1
#   RUN           name of the run: small letters, digits and -
#   WORKDIR       workdir of the run, gs://BUCKET/runs/NAME
#   MAX_RESTARTS  so often the run is started again             (1000)
#   GRACE_S       seconds between SIGTERM and SIGKILL           (120)
set -euo pipefail
# shellcheck source=scripts/cloud/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

SLICES=${SLICES:-1}
SPOT=${SPOT:-1}
MAX_RESTARTS=${MAX_RESTARTS:-1000}
GRACE_S=${GRACE_S:-120}

# Sets PLACE, the flags of every command of xpk.
check_settings() {
  need CLUSTER 'the name of the cluster'
  need PROJECT 'the project of Google Cloud'
  need ZONE 'the zone, as us-east5-b'
  need_number SLICES
  need_number MAX_RESTARTS
  need_number GRACE_S
  need_switch SPOT
  PLACE=("--cluster=$CLUSTER" "--project=$PROJECT" "--zone=$ZONE")
}

check_run() {
  need RUN 'the name of the run, as base-1'
  [[ $RUN =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    fail "RUN=$RUN: write a letter, then small letters, digits and -, 40 at most"
}

create() {
  local capacity=--on-demand
  need TYPE 'the type of a slice, as v5litepod-32'
  [ "$SPOT" = 0 ] || capacity=--spot
  run xpk cluster create "${PLACE[@]}" "--tpu-type=$TYPE" "--num-slices=$SLICES" "$capacity"
}

install() {
  need IMAGE 'the image, as REGION-docker.pkg.dev/PROJECT/REPOSITORY/transformer_jax:v1'
  run docker build "--file=$ROOT/scripts/cloud/Dockerfile" "--tag=$IMAGE" "$ROOT"
  run docker push "$IMAGE"
}

start() {
  local command
  check_run
  need TYPE 'the type of a slice, as v5litepod-32'
  need IMAGE 'the image that install has pushed'
  need_bucket
  need_train_flags "$@"
  # exec: so SIGTERM reaches the program, not a shell around it.
  command=$(quoted exec transformer-jax train --distributed "--workdir=$WORKDIR" "$@")
  # XPK restarts after 42 and 127 to 255 by itself, so after 143; 3: the lease of a run that was
  # killed has not expired; 5: another host is gone.
  run xpk workload create "${PLACE[@]}" "--workload=$RUN" "--tpu-type=$TYPE" \
    "--num-slices=$SLICES" "--docker-image=$IMAGE" "--max-restarts=$MAX_RESTARTS" \
    --restart-on-exit-codes=3,5 "--termination-grace-period-seconds=$GRACE_S" \
    "--command=$command"
}

status() {
  check_run
  run xpk workload list "${PLACE[@]}" "--filter-by-job=$RUN"
  run kubectl logs "--selector=jobset.sigs.k8s.io/jobset-name=$RUN,\
batch.kubernetes.io/job-completion-index=0" --tail=20
}

stop() {
  check_run
  confirm "stop $RUN on $CLUSTER"
  run xpk workload delete "${PLACE[@]}" "--workload=$RUN" --force
}

remove() {
  confirm "delete the cluster $CLUSTER with all that runs on it"
  run xpk cluster delete "${PLACE[@]}" --force
}

read_options "$@"
set -- "${ARGUMENTS[@]}"
command=${1:-}
shift || true
case $command in
  run) command=start ;;
  delete) command=remove ;;
  create | install | status | stop | fetch) ;;
  *)
    fail "${command:-nothing} is no command: create, install, run, status, stop, fetch and delete \
are"
    ;;
esac
check_settings
"$command" "$@"
