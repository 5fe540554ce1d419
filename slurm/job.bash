# shellcheck shell=bash
# What the batch scripts share. `here` is the folder of this file.

# Read the site's settings and put rayasd on the path.
prepare() {
    # shellcheck source=slurm/site.env
    [ ! -f "${RAYASD_SITE:-$here/site.env}" ] || . "${RAYASD_SITE:-$here/site.env}"
    # shellcheck disable=SC2086 # a list of modules
    [ -z "${RAYASD_MODULES:-}" ] || module load $RAYASD_MODULES
    export PATH="${RAYASD_VENV:-$here/../.venv}/bin:$PATH"
    # shellcheck disable=SC2034,SC2206 # for the scripts; a prefix of several words
    rayasd=(${RAYASD_CONTAINER:-} rayasd)
}

# Submit this script, on a login node: words before -- are sbatch's, those after it the script's.
submit() {
    local options=()
    while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1"); shift; done
    [ $# -gt 0 ] || { echo "usage: $0 [sbatch options] -- [sweep options]" >&2; exit 2; }
    prepare
    exec sbatch "${options[@]}" "$0" "${@:2}"
}

# Put the job back in the queue, unless it is cancelled, preempted, or was there too often.
requeue() {
    [ "${SLURM_RESTART_COUNT:-0}" -lt "${RAYASD_MAX_RESTARTS:-10}" ] || return 0
    [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ] || return 0
    echo "$1: back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60 # until Slurm ends this attempt; an exit now would end the job for good
}

# Run a command. When Slurm says that the time limit is near, interrupt it and put the job back in the queue.
run() {
    "$@" &
    local step=$! code
    trap 'kill -USR1 "$step"' USR1 TERM # srun hands USR1 on to what it started; of TERM it would end it at once
    wait "$step"; code=$?
    while kill -0 "$step" 2>/dev/null; do wait "$step"; code=$?; done # a trapped signal ends wait early
    [ "$code" -ne 75 ] || requeue interrupted
    return "$code"
}

# Run a launcher on each node. Where the head's host is lost and this script with it, a node that is left puts the job
# back in the queue: with --no-kill, Slurm itself would leave it running, without anything that runs.
run_on_nodes() {
    run srun --no-kill --ntasks-per-node=1 "${rayasd[@]}" launch --temp-dir "${RAYASD_TMP:-/tmp}" \
        --on-lost-head ". '$here/job.bash'; requeue 'the head is lost'" -- "$@"
}
