#!/usr/bin/env bash
# Starts a run on a GKE cluster of TPUs through xpk, see docs/launch.md:
#
#   PROJECT=p ZONE=us-east5-a CLUSTER=pods STORAGE=qwen3 IMAGE=us-docker.pkg.dev/p/qwen3/jax:1 \
#     launch/gke/run.sh qwen3-30b v5p-128 /mnt/qwen3/runs/30b --config=experiments/moe_30b_a3b.py:corpora=/mnt/qwen3/corpora
#
# Arguments: name of the workload, type of TPU, work directory (on STORAGE), then flags of qwen3_jax.main.
# SLICES (1), MAX_RESTARTS (100), GRACE_SECONDS (120) and PRIORITY (medium) may be set. DRY_RUN=1 prints what xpk would do.
set -euo pipefail

if (($# < 4)); then
  awk 'NR > 1 && !/^#( |$)/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0" >&2
  exit 2
fi
name=$1 tpu_type=$2 workdir=$3
shift 3

# exec: xpk passes SIGTERM to what it started, which must not be a shell.
run=(python -m qwen3_jax.main "--workdir=$workdir" --stopped_exit_status=75 "$@")
arguments=(
  "--project=${PROJECT:?}" "--zone=${ZONE:?}" "--cluster=${CLUSTER:?}"
  "--workload=$name" "--tpu-type=$tpu_type" "--num-slices=${SLICES:-1}"
  "--docker-image=${IMAGE:?}" "--storage=${STORAGE:?}" "--priority=${PRIORITY:-medium}"
  "--max-restarts=${MAX_RESTARTS:-100}" --restart-on-exit-codes=75
  "--termination-grace-period-seconds=${GRACE_SECONDS:-120}"
  "--command=exec$(printf ' %q' "${run[@]}")"
)
if [[ -n ${DRY_RUN:-} ]]; then
  arguments+=(--dry-run)
fi
exec xpk workload create "${arguments[@]}"
