#!/bin/bash
#SBATCH --job-name=rayasd
#SBATCH --nodes=1 --ntasks=1
#SBATCH --signal=B:USR1@120 --requeue --open-mode=append
#SBATCH --output=rayasd-%j.log
# A sweep on one node. Options of this script are options of `rayasd sweep`; resources come on sbatch's command line:
#
#   sbatch --cpus-per-task=16 --gpus=1 --time=8:00:00 slurm/train.sh --data /scratch/dcase --run-dir runs/night
#
# Near the time limit the sweep is interrupted and the job put back in the queue, where it goes on from its last
# checkpoints. Units save a checkpoint every exposure.checkpoint_every epochs.
set -u
export PATH="${RAYASD_VENV:-$PWD/.venv}/bin:$PATH"

rayasd sweep "$@" &
sweep=$!
trap 'kill -TERM "$sweep"' USR1 TERM # not INT: a shell's background processes ignore it

wait "$sweep"; code=$?
while kill -0 "$sweep" 2>/dev/null; do wait "$sweep"; code=$?; done # a trapped signal ends wait early

if [ "$code" -eq 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "${RAYASD_MAX_RESTARTS:-10}" ]; then
    echo "interrupted: back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60 # until Slurm ends this attempt; an exit now would end the job for good
fi
exit "$code"
