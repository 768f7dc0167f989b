#!/usr/bin/env bash
# A run under Slurm, one process a task; see docs/launch.md:
#
#   sbatch --nodes=16 --ntasks-per-node=1 --time=24:00:00 launch/slurm/run.sh /mnt/qwen3/runs/30b \
#     --config=experiments/moe_30b_a3b.py:corpora=/mnt/qwen3/corpora,tokenizer=/mnt/qwen3/tokenizer
#
# Arguments: work directory, on storage that all nodes share, then flags of qwen3_jax.main. Submit it from the source
# tree. PYTHON (python) is the interpreter. Before a preemption or the time limit Slurm sends SIGTERM; the run saves its
# state, and the job goes back into the queue until the run is done.
#SBATCH --job-name=qwen3
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --signal=TERM@300
set -uo pipefail

if (($# < 2)); then
  awk 'NR > 1 && !/^#( |$)/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0" >&2
  exit 2
fi
workdir=$1
shift
trap : TERM # meant for the processes of the run, which get it from Slurm; this script waits for them

srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m qwen3_jax.main "--workdir=$workdir" --stopped_exit_status=75 "$@" &
step=$!
wait "$step"
status=$?
while kill -0 "$step" 2>/dev/null; do # the trap ended the wait
  wait "$step"
  status=$?
done
if ((status == 75)); then
  echo "stopped before its end; goes back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
