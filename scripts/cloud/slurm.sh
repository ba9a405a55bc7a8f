#!/usr/bin/env bash
# A run on GPU nodes under SLURM, that is queued again after preemption and at its time limit:
#
#   sbatch --nodes=2 --gpus-per-node=4 --ntasks-per-node=4 scripts/cloud/slurm.sh \
#     --config=configs/wmt14.py:en-de,base --workdir=/shared/runs/w
#
# The arguments are those of `transformer-jax train`. Start one task for each GPU: JAX gives the task
# number i of a node its GPU number i. So do not use --gpus-per-task, which shows each task one GPU
# only.
#
# Before the time limit, and before a preemption where the cluster sends the same signal, the run
# saves a checkpoint and the job goes back to the queue. After a time limit of less than a save takes
# it goes on from its last checkpoint. `scancel JOB` ends it for good.
#
# Settings:
#   VENV          environment with the package, .[cuda] installed   (.venv)
#   MAX_RESTARTS  so often the job is queued again                  (1000)
#
#SBATCH --job-name=transformer-jax
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@180
set -euo pipefail

VENV=${VENV:-.venv}
MAX_RESTARTS=${MAX_RESTARTS:-1000}

fail() {
  printf 'slurm.sh: %s\n' "$1" >&2
  exit 2
}

[ -n "${SLURM_JOB_ID:-}" ] || fail 'submit it: sbatch scripts/cloud/slurm.sh …'
[[ $MAX_RESTARTS =~ ^[0-9]+$ ]] || fail "MAX_RESTARTS=$MAX_RESTARTS: write a whole number"
[ -x "$VENV/bin/transformer-jax" ] || fail "VENV=$VENV has no transformer-jax: install it there"
[ -z "${SLURM_GPUS_PER_TASK:-}" ] ||
  fail 'use --gpus-per-node and --ntasks-per-node in place of --gpus-per-task'
if [ -n "${SLURM_GPUS_ON_NODE:-}" ] && [ "$SLURM_GPUS_ON_NODE" != "${SLURM_NTASKS_PER_NODE:-1}" ]
then
  fail "$SLURM_GPUS_ON_NODE GPUs and ${SLURM_NTASKS_PER_NODE:-1} tasks on a node: give \
--ntasks-per-node=$SLURM_GPUS_ON_NODE"
fi
[ "$#" -gt 0 ] || fail 'give the flags of train, as --config=… --workdir=…'

again=''
# SIGUSR1, since srun answers SIGTERM by killing its tasks.
trap 'again=1; kill -USR1 "$step" 2> /dev/null || true' USR1
trap 'kill -USR1 "$step" 2> /dev/null || true' TERM

srun "$VENV/bin/transformer-jax" train --distributed "$@" &
step=$!
code=0
wait "$step" || code=$?
while kill -0 "$step" 2> /dev/null; do # A signal ended the wait.
  code=0
  wait "$step" || code=$?
done

case $code in
  0 | 1 | 2 | 4 | 130) exit "$code" ;; # done, a bug, a mistake, diverged, Ctrl-C
  143) [ -n "$again" ] || exit "$code" ;; # scancel, or a preemption after which SLURM queues it
esac
restarts=${SLURM_RESTART_COUNT:-0}
[ "$restarts" -lt "$MAX_RESTARTS" ] || fail "exit code $code after $restarts restarts: no further"
echo "slurm.sh: exit code $code: the job is queued again"
scontrol requeue "$SLURM_JOB_ID"
