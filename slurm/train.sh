#!/bin/bash
#SBATCH --job-name=rayasd
#SBATCH --nodes=1 --ntasks-per-node=1 --no-kill
#SBATCH --signal=B:USR1@120 --requeue --open-mode=append
#SBATCH --output=rayasd-%j.log
# A sweep on any number of nodes. Options of this script are options of `rayasd sweep`; resources come on sbatch's
# command line, or from slurm/site.env where the script submits itself:
#
#   sbatch --nodes=2 --cpus-per-task=16 --mem=64G --gpus-per-node=4 --time=8:00:00 slurm/train.sh \
#       --data /scratch/dcase --run-dir runs/night
#   slurm/train.sh --nodes=2 --exclusive --mem=0 -- --data /scratch/dcase --run-dir runs/night
#
# Each node runs one launcher; the first also runs the driver. Near the time limit, units save at their epoch's end and
# the job goes back in the queue, where it goes on. --no-kill: the job outlives a lost node.
set -u
# Slurm runs a copy of this script. Where it came from knows the script if it submitted itself, else the job.
script=$(scontrol show job "${SLURM_JOB_ID:-none}" 2>/dev/null | sed -n 's/^ *Command=\([^ ]*\).*/\1/p' | head -1)
here=${RAYASD_HERE:-$(dirname "$(readlink -f "${script:-$0}")")}
[ -f "$here/job.bash" ] || here=$(dirname "$(readlink -f "$0")")
[ -f "$here/job.bash" ] || { echo "no job.bash where ${script:-$0} is; if a space is in its path: slurm/train.sh submits itself" >&2; exit 2; }
# shellcheck source=slurm/job.bash
. "$here/job.bash"
[ -n "${SLURM_JOB_ID:-}" ] || submit sweep "$@"
prepare

run_on_nodes sweep "$@"
