# shellcheck shell=bash
# What the batch scripts share. `here` is the folder of this file.

# Read the site's settings and put rayasd on the path.
prepare() {
    # shellcheck source=slurm/site.env
    [ ! -f "${RAYASD_SITE:-$here/site.env}" ] || . "${RAYASD_SITE:-$here/site.env}"
    # shellcheck disable=SC2086 # a list of modules
    [ -z "${RAYASD_MODULES:-}" ] || module load $RAYASD_MODULES
    export RAYASD_MAX_RESTARTS="${RAYASD_MAX_RESTARTS:-10}" PATH="${RAYASD_VENV:-$here/../.venv}/bin:$PATH"
    # shellcheck disable=SC2034,SC2206 # for the scripts; a prefix of several words
    rayasd=(${RAYASD_CONTAINER:-} rayasd)
}

# Divide the words of a login node's command line: before -- they are sbatch's `options`, after it the script's `words`.
divide() {
    options=()
    while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1"); shift; done
    [ $# -gt 0 ] || { echo "usage: $0 [sbatch options] -- [sweep options]" >&2; exit 2; }
    words=("${@:2}")
}

# Submit this script, on a login node.
submit() {
    divide "$@"
    prepare
    exec sbatch "${options[@]}" "$0" "${words[@]}"
}

# Put the job back in the queue, unless it is cancelled, preempted, or was there too often.
requeue() {
    local job=$SLURM_JOB_ID
    [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    [ "${SLURM_RESTART_COUNT:-0}" -lt "${RAYASD_MAX_RESTARTS:-10}" ] || return 0
    command -v scontrol >/dev/null || { echo "$1, but there is no scontrol here" >&2; return 0; }
    [ "$(squeue --noheader --jobs="$job" --format=%T)" = RUNNING ] || return 0
    echo "$1: back into the queue"
    scontrol requeue "$job"
    sleep 60 # until Slurm ends this attempt; an exit now would end the job for good
}

# Run a command. When Slurm says that the time limit is near, interrupt it and put the job back in the queue.
run() {
    "$@" &
    local step=$! code=0
    trap 'kill -USR1 "$step"' USR1
    [ "$1" = srun ] || trap 'kill -TERM "$step"' TERM # what srun started has its TERM from Slurm
    [ "$1" != srun ] || trap : TERM
    wait "$step" || code=$?
    while kill -0 "$step" 2>/dev/null; do code=0; wait "$step" || code=$?; done # a trapped signal ends wait early
    [ "$code" -ne 75 ] || requeue interrupted
    return "$code"
}

# Run a launcher on each node. Where the head's host is lost and this script with it, a node that is left puts the job
# back in the queue: with --no-kill, Slurm itself would leave it running, without anything that runs.
run_on_nodes() {
    local cpus=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE} # srun no longer takes it over from sbatch
    run srun --no-kill --ntasks-per-node=1 --cpus-per-task="$cpus" \
        "${rayasd[@]}" launch --temp-dir "${RAYASD_TMP:-/tmp}" \
        --on-lost-head ". '$here/job.bash'; requeue 'the head is lost'" -- "$@"
}
