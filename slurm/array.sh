#!/bin/bash
#SBATCH --job-name=rayasd
#SBATCH --nodes=1 --ntasks=1
#SBATCH --signal=B:USR1@120 --requeue --open-mode=append
# A sweep without a cluster, where many small jobs start sooner than one large one: a job that decodes and writes the
# plan, then one array task a machine type, all into the same run directory, then a report of whatever came of them.
# Run it on a login node; words before -- are sbatch's, for each task:
#
#   slurm/array.sh --cpus-per-task=8 --gpus=1 --time=4:00:00 -- --data /scratch/dcase --run-dir runs/night --seeds 0-4
#
# Wrong options are refused before anything is submitted. Prints the ids of the three jobs.
set -u
# Slurm runs a copy of this script; the job knows where it came from.
script=$(scontrol show job "${SLURM_JOB_ID:-none}" 2>/dev/null | sed -n 's/^ *Command=\([^ ]*\).*/\1/p' | head -1)
here=$(dirname "$(readlink -f "${script:-$0}")")
[ -f "$here/job.bash" ] || here=$(dirname "$(readlink -f "$0")")
# shellcheck source=slurm/job.bash
. "$here/job.bash"
prepare

case ${RAYASD_PART:-} in
"")
    divide "$@"
    plan=$("${rayasd[@]}" sweep "${words[@]}" --dry-run) || exit
    machines=$(awk '/^  detect /{print $2}' <<<"$plan" | sort -u | paste -sd ' ')
    read -ra names <<<"$machines"
    batch() { sbatch --parsable "${options[@]}" "${@:2}" --export="ALL,RAYASD_PART=$1,RAYASD_MACHINES=$machines" \
        --output="rayasd-%A-%a.log" "$0" "${words[@]}"; }
    plan_job=$(batch plan) || exit
    machine_jobs=$(batch machine --array="0-$((${#names[@]} - 1))" --dependency="afterok:$plan_job" \
        --kill-on-invalid-dep=yes) || exit
    report_job=$(batch report --dependency="afterany:$machine_jobs") || exit
    echo "plan $plan_job, ${#names[@]} machines $machine_jobs, report $report_job"
    ;;
plan) "${rayasd[@]}" sweep "$@" --set-up-only ;;
machine)
    read -ra names <<<"$RAYASD_MACHINES"
    run "${rayasd[@]}" sweep "$@" --executor local --only "${names[$SLURM_ARRAY_TASK_ID]}"
    ;;
report)
    folder=runs/default
    while [ $# -gt 0 ]; do
        case $1 in --run-dir) folder=$2 ;; --run-dir=*) folder=${1#*=} ;; esac
        shift
    done
    "${rayasd[@]}" report "$folder"
    ;;
esac
