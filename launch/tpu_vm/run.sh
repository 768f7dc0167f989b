#!/usr/bin/env bash
# Runs an experiment on a Cloud TPU slice to its end, with gcloud: every host starts the same command. A slice that is
# preempted is requested again, and the run continues from its newest checkpoint. See docs/launch.md.
#
#   PROJECT=p ZONE=us-east5-a launch/tpu_vm/run.sh pod v5p-128 v2-alpha-tpuv5 /mnt/qwen3/runs/30b \
#     --config=experiments/moe_30b_a3b.py:corpora=/mnt/qwen3/corpora,tokenizer=/mnt/qwen3/tokenizer
#
# Arguments: name of the slice, its type, its runtime version, work directory, then flags of qwen3_jax.main.
# NFS=SERVER:/SHARE is mounted at /mnt/qwen3 of every host; SOURCE (/mnt/qwen3/source) there is this source tree.
# SPOT=1 asks for a preemptible slice. KEEP=1 leaves the slice when the run is done. MAX_FAILURES (3) failures in a row
# of the command itself, on a slice that lives, end the script. POLL_SECONDS (30) lie between two looks at the slice.
set -euo pipefail

if (($# < 5)); then
  awk 'NR > 1 && !/^#( |$)/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0" >&2
  exit 2
fi
name=$1 type=$2 version=$3 workdir=$4
shift 4
place=("--project=${PROJECT:?}" "--zone=${ZONE:?}")
source=${SOURCE:-/mnt/qwen3/source}

state() {
  gcloud compute tpus queued-resources describe "$name" "${place[@]}" --format="value(state.state)" 2>/dev/null ||
    echo NONE
}

create() {
  gcloud compute tpus queued-resources create "$name" --node-id="$name" "${place[@]}" \
    --accelerator-type="$type" --runtime-version="$version" ${SPOT:+--spot}
}

delete() {
  gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
}

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all --command="$1"
}

# Once per slice: the storage, and an environment on the host's own disk. Python must be 3.11 or newer.
prepare() {
  on_all_hosts "set -e
    mountpoint -q /mnt/qwen3 || { sudo mkdir -p /mnt/qwen3; sudo mount -t nfs ${NFS:?} /mnt/qwen3; }
    test -x ~/env/bin/python || ${PYTHON:-python3.11} -m venv ~/env
    cd $(printf %q "$source") && ~/env/bin/pip install --quiet '.[tpu,rl]'"
}

# What a broken connection may have left running saves its state and lets go of the work directory.
settle() {
  on_all_hosts "pkill -TERM -f '[q]wen3_jax.main'; while pgrep -f '[q]wen3_jax.main' >/dev/null; do sleep 2; done"
}

run() {
  local command=(-m qwen3_jax.main "--workdir=$workdir" --stopped_exit_status=75 "$@")
  on_all_hosts "cd $(printf %q "$source") && exec ~/env/bin/python$(printf ' %q' "${command[@]}")"
}

failures=0
prepared=""
while true; do
  now=$(state)
  case $now in
    ACTIVE)
      if [[ -z $prepared ]] && prepare; then
        prepared=1
      fi
      settle || true
      if [[ -n $prepared ]] && run "$@"; then
        echo "done"
        [[ -n ${KEEP:-} ]] || delete
        exit 0
      fi
      sleep "${POLL_SECONDS:-30}" # until a preemption shows in the state
      if [[ $(state) == ACTIVE ]]; then
        failures=$((failures + 1))
        if ((failures >= ${MAX_FAILURES:-3})); then
          echo "$failures failures in a row on a slice that lives; its logs say why" >&2
          exit 1
        fi
      fi
      ;;
    NONE)
      prepared="" failures=0
      create
      ;;
    SUSPENDED | SUSPENDING | FAILED)
      echo "slice $name: $now; requested again"
      delete
      ;;
    *) sleep "${POLL_SECONDS:-30}" ;; # WAITING_FOR_RESOURCES, PROVISIONING, ...
  esac
done
