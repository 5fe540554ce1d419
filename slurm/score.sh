#!/bin/bash
#SBATCH --job-name=rayasd-score
#SBATCH --nodes=1 --ntasks-per-node=1 --no-kill
#SBATCH --signal=B:USR1@120 --requeue --open-mode=append
#SBATCH --output=rayasd-%j.log
# Embed and score what is missing of a run whose networks are trained, and rank it afresh: after --set-up-only with more
# detectors or windows, or after a training by hand. Resources as for train.sh; options after RUN are of `rayasd embed`:
#
#   sbatch --nodes=2 --cpus-per-task=16 --mem=32G slurm/score.sh runs/night --cpus-per-unit 2
set -u
# Slurm runs a copy of this script. Where it came from knows the script if it submitted itself, else the job.
script=$(scontrol show job "${SLURM_JOB_ID:-none}" 2>/dev/null | sed -n 's/^ *Command=\([^ ]*\).*/\1/p' | head -1)
here=${RAYASD_HERE:-$(dirname "$(readlink -f "${script:-$0}")")}
[ -f "$here/job.bash" ] || here=$(dirname "$(readlink -f "$0")")
[ -f "$here/job.bash" ] || { echo "no job.bash where ${script:-$0} is; if a space is in its path: slurm/score.sh submits itself" >&2; exit 2; }
# shellcheck source=slurm/job.bash
. "$here/job.bash"
[ -n "${SLURM_JOB_ID:-}" ] || submit embed "$@"
prepare

# Where nothing is missing, the command only ranks, and needs no Ray.
done='"waiting": 0, "running": 0, "failed": 0, "blocked": 0'
if "${rayasd[@]}" status "$1" --format json | grep -q "$done"; then
    "${rayasd[@]}" embed "$@" --detect
else
    run_on_nodes embed "$@" --detect
fi
