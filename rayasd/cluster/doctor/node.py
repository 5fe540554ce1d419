"""Checks of this node: CPUs, threads, memory, and the folders with their space and clocks."""

import fcntl
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from rayasd.cluster.doctor import Said
from rayasd.cluster.folder import private_folder
from rayasd.cluster.settings import OBJECT_STORE_BYTES
from rayasd.errors import UserError
from rayasd.host import cgroup_files, cpu_quota, usable_cpus
from rayasd.wording import size

_OF_ONE_NODE = ("ext", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "ramfs", "rootfs", "overlay", "fuse.fuse-overlayfs")
_TRAINING_MEMORY = 9.6e9  # its peak with 128 clips a step: docs/performance.md
_LITTLE_SPACE, _NO_SPACE = 5e9, 2e8
_CLOCKS_DIFFER_SECONDS = 5.0
_FEW_FILES = 4096


def cpus(environment: Mapping[str, str]) -> Said:
    """Compare the CPUs that this process may use with those that Slurm gave."""
    usable, given = len(os.sched_getaffinity(0)), usable_cpus(environment)
    said = f"{usable} of {os.cpu_count()} usable, launch would offer {given}"
    asked = environment.get("SLURM_CPUS_PER_TASK", "")
    if asked.isdecimal() and int(asked) > usable:
        return "bad", f"{said}, but Slurm gave {asked}: give srun --cpus-per-task={asked} too"
    quota = cpu_quota()
    if quota < usable:
        return "note", f"{said}: the cgroup's quota allows {quota:g}; more is for whoever set it (docker --cpus, Slurm)"
    return "ok", said


def threads(environment: Mapping[str, str]) -> Said:
    """Look at ``OMP_NUM_THREADS``."""
    number = environment.get("OMP_NUM_THREADS") or "unset"
    if number in ("unset", "1"):
        return "ok", f"OMP_NUM_THREADS is {number}; units have as many as --cpus-per-unit says"
    return "note", f"OMP_NUM_THREADS={number}: what rayasd does not limit takes that many in every unit; better unset"


def open_files() -> Said:
    """Look at the limit of open files: Ray's processes take hundreds each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    said = f"{soft} allowed, {hard} if asked for"
    if soft < _FEW_FILES:
        return "note", f"{said}: few for Ray with many CPUs; ulimit -n {min(hard, 65536)}"
    return "ok", said


def memory() -> Said:
    """Look for the memory limit of this job; Ray looks at the root of the cgroups only."""
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = cgroup_files("memory", "memory.max", "memory.limit_in_bytes")
    limit = min([host, *(int(text) for text in limits if text.isdecimal())])
    said = f"{size(limit)} for this cgroup, {size(host)} on the host"
    if limit < _TRAINING_MEMORY:
        return "note", f"{said}: a training takes up to {size(_TRAINING_MEMORY)} on processors: ask for more (--mem)"
    return "ok", said


def shared_memory() -> Said:
    """Compare the shared memory with the object store that we ask for."""
    free = shutil.disk_usage("/dev/shm").free
    said = f"{size(free)} free, {size(OBJECT_STORE_BYTES)} wanted for Ray's object store"
    if free < OBJECT_STORE_BYTES:
        return "note", f"{said}: Ray falls back to slower files in the temp folder"
    return "ok", said


def temp_folder(root: Path) -> Said:
    """Make the folder that Ray's own files would go to: writable, its path short enough, not on a network."""
    root = root.absolute()
    try:
        there = _nearest(root)
        made = private_folder(root)
    except (UserError, OSError) as error:
        return "bad", str(error)
    with suppress(OSError):  # another doctor on this host may be in what we made
        while made != there:
            made.rmdir()
            made = made.parent
    kind, _ = file_system(root)
    local = kind.startswith(_OF_ONE_NODE)
    return _judged(root, kind, [] if local else ["Ray's sockets and logs want a disk of this node: give --temp-dir"])


def folder(path: Path, *, shared: bool = False, local: bool = False) -> Said:
    """Write a file in a folder, or as near to it as there is one.

    Args:
        path: of the folder; need not be there.
        shared: all nodes of the job must see it.
        local: it should better be of this node alone.

    """
    path = path.absolute()
    try:
        with tempfile.NamedTemporaryFile(prefix=".rayasd-doctor-", dir=_nearest(path), buffering=0) as trial:
            before = time.time()
            trial.write(b"1")
            os.fsync(trial.fileno())  # a network folder tells only now that a quota is used up, and its own time
            dated = os.fstat(trial.fileno()).st_mtime
            seconds = dated - min(max(dated, before), time.time())
            trouble = _trouble_with_locks(Path(trial.name))
    except OSError as error:
        return "bad", f"cannot write {path}: {error.strerror}"
    kind, mount = file_system(path)
    if trouble:
        return "bad", f"{path} ({kind}): {trouble}"
    notes = _alone(kind, mount) if shared else []
    if local and not kind.startswith(_OF_ONE_NODE):
        notes.append("all units of a node map it: better on a disk of the node (--cache, RAYASD_CACHE)")
    if abs(seconds) > _CLOCKS_DIFFER_SECONDS:
        notes.append(f"files are dated {seconds:+.0f} s from this node's clock: times of a run will look wrong")
    return _judged(path, kind, notes)


def _trouble_with_locks(trial: Path) -> str | None:
    """Do with a file what locks of runs and caches are made of."""
    lock = trial.with_name(f"{trial.name}.lock")
    try:
        with lock.open("x") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(FileExistsError):
            lock.open("x").close()
            return "a file can be made anew while it is there: two sweeps could take one run"
        os.utime(lock)
    except OSError as error:
        return f"cannot lock files: {error.strerror}"
    finally:
        lock.unlink(missing_ok=True)
    return None


def recordings(source: Path | None, *, shared: bool = False) -> Said:
    """Look whether the data can be read; what is in them is ``rayasd data check``'s to say."""
    if source is None:
        return "ok", "none named (--data ROOT)"
    source = source.absolute()
    try:
        if source.is_dir():
            next(source.iterdir(), None)
        else:
            source.open("rb").close()
    except OSError as error:
        return "bad", f"cannot read {source}: {error.strerror}"
    kind, mount = file_system(source)
    notes = _alone(kind, mount) if shared else []
    return "note" if notes else "ok", "; ".join([f"{source} ({kind}) can be read", *notes])


def file_system(path: Path, mounts: Path = Path("/proc/self/mounts")) -> tuple[str, Path]:
    """Find the type of the file system that a path is on or would be on, and where that is mounted."""
    place = Path(os.path.realpath(path))
    lines = reversed(mounts.read_text().splitlines())  # a later mount hides an earlier one
    mounted = [(kind, Path(point.replace("\\040", " "))) for _, point, kind, *_ in map(str.split, lines)]
    return max((found for found in mounted if place.is_relative_to(found[1])), key=lambda found: len(found[1].parts))


def _alone(kind: str, mount: Path) -> list[str]:
    said = f"{mount} is most likely of this node alone, but all nodes of the job must see it"
    return [said] if kind.startswith(_OF_ONE_NODE) else []


def _judged(path: Path, kind: str, notes: list[str]) -> Said:
    """Add the free space to what else is to be said of a folder."""
    free = shutil.disk_usage(_nearest(path)).free
    if free < _LITTLE_SPACE:
        notes = [*notes, "little space: make room, or choose another"]
    said = "; ".join([f"{path} ({kind}), {size(free)} free", *notes])
    return "bad" if free < _NO_SPACE else "note" if notes else "ok", said


def _nearest(path: Path) -> Path:
    return next(there for there in (path, *path.parents) if there.exists())
