#!/bin/bash
#SBATCH --job-name=rayasd
#SBATCH --nodes=1 --ntasks=1
#SBATCH --signal=B:USR1@120 --requeue --open-mode=append
# A sweep without a cluster, where many small jobs start sooner than one large one: a job that decodes and writes the
# plan, then an array task for each machine type, variant and seed, all into the same run directory, then a report of
# whatever came of them. Where these are more than RAYASD_TASKS (100), a task does several. Networks of all machine types
# together (exposure.scope = "all") are trained by a task of their own before the array.
# Run it on a login node; words before -- are sbatch's, for each task:
#
#   slurm/array.sh --cpus-per-task=8 --mem=32G --gpus=1 --time=4:00:00 -- --data /scratch/dcase --run-dir runs/night
#
# The first and the last job ask for no GPUs (RAYASD_WITHOUT_GPUS: options of their own). Wrong options are refused before
# anything is submitted. Prints the ids of the jobs.
set -u
# Slurm runs a copy of this script. Where it came from knows the script if it submitted itself, else the job.
script=$(scontrol show job "${SLURM_JOB_ID:-none}" 2>/dev/null | sed -n 's/^ *Command=\([^ ]*\).*/\1/p' | head -1)
here=${RAYASD_HERE:-$(dirname "$(readlink -f "${script:-$0}")")}
[ -f "$here/job.bash" ] || here=$(dirname "$(readlink -f "$0")")
[ -f "$here/job.bash" ] || { echo "no job.bash where ${script:-$0} is; if a space is in its path: start slurm/array.sh itself" >&2; exit 2; }
# shellcheck source=slurm/job.bash
. "$here/job.bash"
prepare

case ${RAYASD_PART:-} in
"")
    divide "$@"
    plan=$("${rayasd[@]}" sweep "${words[@]}" --dry-run) || exit
    shares=$(sed -n 's/^shares: //p' <<<"$plan")
    count=${shares%% *} most=${RAYASD_TASKS:-100}
    [ "${count:-0}" -gt 0 ] 2>/dev/null || { echo "$0: rayasd sweep --dry-run names no shares" >&2; exit 1; }
    export RAYASD_TASKS=$((count < most ? count : most)) RAYASD_HERE=$here
    leave_out_gpus "${options[@]}"
    batch() { RAYASD_PART=$1 sbatch --parsable "${@:2}" --export=ALL "$0" "${words[@]}"; }
    small() ( # a job without GPUs
        for name in "${!SBATCH_@}"; do case $name=${!name} in *GPU*=* | *GRES=gpu*) unset "$name" ;; esac; done
        # shellcheck disable=SC2086 # several words
        batch "$1" --output="rayasd-%j.log" "${without_gpus[@]}" ${RAYASD_WITHOUT_GPUS:-} "${@:2}"
    )
    plan_job=$(small plan) || exit
    after=afterok:$plan_job
    tasks() { batch "$1" --output="rayasd-%A-%a.log" "${options[@]}" --array="1-$2" --dependency="$after" --kill-on-invalid-dep=yes; }
    if [ "$count" != "$shares" ]; then
        shared_job=$(tasks shared 1) || exit
        after=$after,afterany:$shared_job
    fi
    share_jobs=$(tasks share "$RAYASD_TASKS") || exit
    report_job=$(small report --dependency="afterany:$share_jobs") || exit
    echo "plan $plan_job, ${shared_job:+shared network $shared_job, }$RAYASD_TASKS tasks $share_jobs, report $report_job"
    ;;
plan) "${rayasd[@]}" sweep "$@" --set-up-only ;;
shared) run "${rayasd[@]}" sweep "$@" --executor local --only shared ;;
share) run "${rayasd[@]}" sweep "$@" --executor local --only "$SLURM_ARRAY_TASK_ID/$RAYASD_TASKS" ;;
report)
    folder=runs/default
    while [ $# -gt 0 ]; do
        case $1 in --run-dir) folder=$2 ;; --run-dir=*) folder=${1#*=} ;; esac
        shift
    done
    "${rayasd[@]}" report "$folder"
    ;;
esac
