#!/bin/bash
#SBATCH --job-name=rayasd
#SBATCH --nodes=1 --ntasks-per-node=1 --no-kill
#SBATCH --signal=B:USR1@120 --requeue --open-mode=append
#SBATCH --output=rayasd-%j.log
# A sweep on any number of nodes. Options of this script are options of `rayasd sweep`; resources come on sbatch's command
# line:
#
#   sbatch --nodes=2 --cpus-per-task=16 --gpus-per-node=4 --time=8:00:00 slurm/train.sh --data /scratch/dcase --run-dir runs/night
#
# Each node runs one launcher; the first also runs the driver. Near the time limit the sweep is interrupted and the job put
# back in the queue, where it goes on from its last checkpoints (every exposure.checkpoint_every epochs). --no-kill, here
# and below: the job outlives a lost node. RAYASD_VENV: the environment, default .venv here. RAYASD_TMP: node-local folder.
set -u
export PATH="${RAYASD_VENV:-$PWD/.venv}/bin:$PATH"

srun --no-kill --ntasks-per-node=1 rayasd launch --temp-dir "${RAYASD_TMP:-/tmp}" -- sweep "$@" &
step=$!
trap 'kill -USR1 "$step"' USR1 TERM # srun hands USR1 on to the launchers; on TERM it would end them

wait "$step"; code=$?
while kill -0 "$step" 2>/dev/null; do wait "$step"; code=$?; done # a trapped signal ends wait early

if [ "$code" -eq 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "${RAYASD_MAX_RESTARTS:-10}" ]; then
    echo "interrupted: back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60 # until Slurm ends this attempt; an exit now would end the job for good
fi
exit "$code"
