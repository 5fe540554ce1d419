# shellcheck shell=bash
# What the batch scripts share. `here` is the folder of this file.

# Read the site's settings and put rayasd on the path.
prepare() {
    local site=${RAYASD_SITE:-$here/site.env}
    # shellcheck source=slurm/site.env
    [ ! -f "$site" ] || . "$site"
    set +u # modules' own scripts read what is not set
    # shellcheck disable=SC2086 # a list of modules
    [ -z "${RAYASD_MODULES:-}" ] || module load $RAYASD_MODULES || {
        echo "module load $RAYASD_MODULES failed on $(hostname): see RAYASD_MODULES in $site" >&2
        exit 2
    }
    set -u
    export SLURM_EXPORT_ENV=ALL # after sbatch --export=NONE, srun would hand on nothing of this
    unset RAYASD_HERE           # it is of this script, not of what it may submit
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

# Take from sbatch's options what asks for GPUs or counts by them; what is left is `without_gpus`.
leave_out_gpus() {
    without_gpus=()
    while [ $# -gt 0 ]; do
        case $1 in
        --gpu*=* | --gres=gpu* | --gres-flags=* | --*-per-gpu=* | -G?*) ;;
        --gpu* | --gres-flags | --*-per-gpu | -G) shift ;; # its value is the next word
        --gres) case ${2:-} in gpu*) ;; *) without_gpus+=("$1" "${2:-}") ;; esac; shift ;;
        *) without_gpus+=("$1") ;;
        esac
        shift
    done
}

# Submit this script, on a login node; with the command that it runs, whose wrong options are refused first.
submit() {
    divide "${@:2}"
    prepare
    [ "$1" != sweep ] || "${rayasd[@]}" sweep "${words[@]}" --dry-run >/dev/null || exit
    RAYASD_HERE=$here exec sbatch "${options[@]}" "$0" "${words[@]}"
}

# Put the job back in the queue, unless it is cancelled, preempted, or was there too often.
requeue() {
    local job=$SLURM_JOB_ID state restarts=${SLURM_RESTART_COUNT:-0} most=${RAYASD_MAX_RESTARTS:-10}
    [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    if [ "$restarts" -ge "$most" ]; then
        echo "$1, but restarted $restarts times already (RAYASD_MAX_RESTARTS=$most): submit it again to go on" >&2
        return 0
    fi
    state=$(squeue --noheader --jobs="$job" --format=%T 2>&1) ||
        { echo "$1, but not back into the queue: squeue fails on $(hostname): $state" >&2; return 0; }
    [ "$state" = RUNNING ] || return 0
    echo "$1: back into the queue"
    scontrol requeue "$job" || { echo "$1, but not back into the queue: scontrol fails on $(hostname)" >&2; return 0; }
    sleep 60 # until Slurm ends this attempt; an exit now would end the job for good
}

# Run a command. When Slurm says that the time limit is near, interrupt it and put the job back in the queue.
run() {
    "$@" &
    local step=$! code=0
    trap 'ending=1; kill -USR1 "$step"' USR1
    [ "$1" = srun ] || trap 'kill -TERM "$step"' TERM # what srun started has its TERM from Slurm
    [ "$1" != srun ] || trap : TERM
    wait "$step" || code=$?
    while kill -0 "$step" 2>/dev/null; do code=0; wait "$step" || code=$?; done # a trapped signal ends wait early
    [ "$code" -ne 75 ] || requeue interrupted
    return "$code"
}

# Print the path of the job's log.
log_of_job() {
    local path
    path=$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *StdOut=//p' | head -1)
    [ -w "$path" ] || path=/dev/stdout
    echo "$path"
}

# Run words on a node. Exit code 76: the head's host is lost, and perhaps the batch script with it. With --no-kill, Slurm
# would leave the job running without anything that runs, so this node puts it back in the queue.
on_node() {
    "$@" &
    local launcher=$! code=0
    trap 'kill -USR1 "$launcher"' USR1 # Slurm signals this shell alone
    trap 'kill -TERM "$launcher"' TERM
    wait "$launcher" || code=$?
    while kill -0 "$launcher" 2>/dev/null; do code=0; wait "$launcher" || code=$?; done # a trapped signal ends wait early
    # srun, which hands on what is printed here, ended with the head's host: the log itself is written to
    [ "$code" -ne 76 ] || requeue "the head is lost" >>"$(log_of_job)" 2>&1
    # what is more is srun's own, for run_on_nodes
    [ "$code" -lt 128 ] || { echo "the launcher on $(hostname) was killed (exit code $code)" >&2; code=1; }
    return "$code"
}

# Whether launchers are to be started again, in the same job: a host was lost while srun started them (exit code 233), or
# came back and no longer knew of its task, upon which srun killed the others (137).
again() {
    local code=$1 state count names
    [ "$code" -ge 128 ] || return
    [ "${RAYASD_AGAIN:-0}" -lt "$RAYASD_MAX_RESTARTS" ] || { requeue "srun ended with $code"; return 1; }
    export RAYASD_AGAIN=$((${RAYASD_AGAIN:-0} + 1))
    [ "$code" -eq 137 ] || sleep 30 # Slurm takes minutes to notice that a host is lost, and then takes it from the job
    read -r state count names < <(squeue --noheader --jobs="$SLURM_JOB_ID" --format="%T %D %N")
    [ "$state" = RUNNING ] || return # cancelled, or preempted
    [ -z "${ending:-}" ] || { requeue interrupted; return 1; }
    echo "srun ended with $code, since a host was lost or came back: started again on $count nodes"
    export SLURM_NNODES=$count SLURM_JOB_NUM_NODES=$count SLURM_JOB_NODELIST=$names
    export SLURM_EXIT_ERROR=255 # where srun gets no step from now on, that is tried again too
}

# Run one launcher on each node, whatever number of tasks the job has, and let it use all CPUs that the job has there:
# nodes of one job may have different numbers of CPUs.
run_on_nodes() {
    # shellcheck disable=SC2206 # several words
    local options=(${RAYASD_LAUNCH:-}) code
    unset RAYASD_AGAIN
    while code=0; start_launchers "$@" || code=$?; again "$code"; do :; done
    return "$code"
}

start_launchers() {
    # srun does not take over --cpus-per-task from sbatch; launchers are no MPI program, whatever MpiDefault says;
    # --overlap and all of the job's memory: for a while, Slurm takes for busy what was killed
    # shellcheck disable=SC2016 # for the other shell
    run srun --no-kill --mpi=none --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --cpu-bind=none \
        ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} ${RAYASD_AGAIN:+--overlap --mem=0} \
        bash -c '. "$0"; on_node "$@"' "$here/job.bash" \
        "${rayasd[@]}" launch --temp-dir "${RAYASD_TMP:-/tmp}" "${options[@]}" -- "$@"
}
