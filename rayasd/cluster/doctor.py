"""Checks of this node before a sweep: CPUs, GPUs, placement and folders. Packages are ``pip check``'s subject."""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rayasd.cluster.folder import MARK, private_folder
from rayasd.cluster.placement import Placement, find_placement
from rayasd.errors import UserError, one_line
from rayasd.host import cpu_quota, usable_cpus
from rayasd.wording import size

Severity = Literal["ok", "note", "bad"]
Checked = tuple[Severity, str]  # outcome of a check in one line: what was found, and what to do unless all is well

_LOCAL_FILE_SYSTEMS = (
    "ext", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "ramfs", "rootfs", "overlay", "fuse.fuse-overlayfs",
)  # fmt: skip
_LITTLE_SPACE, _NO_SPACE = 5e9, 2e8
_COUNT_GPUS = """
import torch
for i in range(torch.cuda.device_count()):
    torch.ones(2, device=i).sum().item()
print(torch.cuda.device_count())
"""


@dataclass(frozen=True)
class Finding:
    """One row of the table."""

    check: str
    severity: Severity
    detail: str


def examine(
    environment: Mapping[str, str], *, run_dir: Path, cache: Path, data: Path | None, temp_root: Path
) -> list[Finding]:
    """Run all checks; folders do not need to exist, and a check that raises becomes a finding too."""
    placed, place = placement(environment)
    several = place is not None and place.size > 1
    checks: dict[str, Callable[[], Checked]] = {
        "CPUs": lambda: cpus(environment),
        "GPUs": lambda: gpus(place),
        "placement": lambda: placed,
        "temp folder": lambda: temp_folder(temp_root),
        "run folder": lambda: folder(run_dir, shared=several),
        "cache folder": lambda: folder(cache, local=True),
        "data": lambda: recordings(data, shared=several),
    }
    findings = []
    for name, check in checks.items():
        try:
            findings.append(Finding(name, *check()))
        except Exception as error:
            findings.append(Finding(name, "bad", f"the check failed: {type(error).__name__}: {one_line(error)}"))
    return findings


def cpus(environment: Mapping[str, str]) -> Checked:
    """Compare the CPUs that this process may use with those that Slurm gave."""
    usable = len(os.sched_getaffinity(0))
    detail = f"{usable} of {os.cpu_count()} usable, launch offers {usable_cpus(environment)}"
    asked = environment.get("SLURM_CPUS_PER_TASK", "")
    if asked.isdecimal() and int(asked) > usable:
        return "bad", f"{detail}, but Slurm gave {asked}: give srun --cpus-per-task={asked} too"
    if (quota := cpu_quota()) < usable:
        return "note", f"{detail}: the cgroup's quota allows {quota:g}; raise it (docker --cpus, Slurm)"
    return "ok", detail


def gpus(place: Placement | None) -> Checked:
    """Compute something on every GPU that torch sees, in a process of its own; compare with what launch offers."""
    done = subprocess.run([sys.executable, "-c", _COUNT_GPUS], capture_output=True, text=True, timeout=180, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        return "bad", f"torch cannot be used: {reason[:300]}; compare with nvidia-smi"
    seen = int(done.stdout.split()[-1])
    offered = seen if place is None else place.gpus
    if offered > seen:
        return "bad", f"launch offers {offered}, but torch sees {seen}: compare with nvidia-smi"
    if offered < seen:
        return "note", f"torch sees {seen}, but launch offers {offered}: give --gpus {seen}, unless that is meant"
    return "ok", f"torch sees {seen}" if seen else "torch sees none; units train on CPUs"


def placement(environment: Mapping[str, str]) -> tuple[Checked, Placement | None]:
    """Read the launcher's variables as ``rayasd launch`` does; where it would refuse them, as far as possible."""
    trouble = ""
    try:
        try:
            place = find_placement(environment)
        except UserError as error:
            trouble = str(error)
            place = find_placement(environment, job="doctor", address="127.0.0.1")
    except (UserError, ValueError) as error:
        return ("bad", trouble or f"the launcher's variables make no sense: {error}"), None
    detail = f"rank {place.rank} of {place.size}, CPUs {place.cpus}, GPUs {place.gpus}"
    if trouble:
        return ("bad", f"{detail}; {trouble}"), place
    detail += f", address {place.address}, job {place.job}"
    tasks, nodes = (environment.get(f"SLURM_{name}", "") for name in ("NTASKS", "NNODES"))
    if not place.by_mpi and tasks.isdecimal() and nodes.isdecimal() and int(tasks) > int(nodes):
        return ("note", f"{detail}; launch needs one task per node: srun --ntasks-per-node=1"), place
    return ("ok", detail), place


def temp_folder(root: Path) -> Checked:
    """Make and remove the folder for Ray's own files: writable, its path short enough, on a disk of this node."""
    root = root.absolute()
    existing = _nearest(root)
    try:
        made = private_folder(root)
    except UserError as error:
        return "bad", str(error)
    with suppress(OSError):  # another doctor on this host may use what was made
        (made / MARK).unlink()
        while made != existing:
            made.rmdir()
            made = made.parent
    kind, _ = file_system(root)
    local = kind.startswith(_LOCAL_FILE_SYSTEMS)
    return _judge(root, kind, [] if local else ["Ray's sockets and logs need a disk of this node: give --temp-dir"])


def folder(path: Path, *, shared: bool = False, local: bool = False) -> Checked:
    """Try what a run does with files in a folder that all nodes must see or that is best local; or in its parent."""
    path = path.absolute()
    try:
        with tempfile.NamedTemporaryFile(prefix=".rayasd-doctor-", dir=_nearest(path), buffering=0) as trial:
            trial.write(b"1")
            os.fsync(trial.fileno())  # a network folder reports an exhausted quota only now
            trouble, notes = _trouble_with_names(Path(trial.name)), _missing_locks(trial.fileno())
    except OSError as error:
        return "bad", f"cannot write {path}: {error.strerror}"
    kind, mount = file_system(path)
    if trouble:
        return "bad", f"{path} ({kind}): {trouble}"
    notes += _not_shared(kind, mount) if shared else []
    if local and not kind.startswith(_LOCAL_FILE_SYSTEMS):
        notes.append("all units of a node map it: better on a disk of the node (--cache, RAYASD_CACHE)")
    return _judge(path, kind, notes)


def recordings(source: Path | None, *, shared: bool = False) -> Checked:
    """Check that the data can be read; their content is checked by ``rayasd data check``."""
    if source is None:
        return "ok", "not checked (--data ROOT)"
    source = source.absolute()
    try:
        if source.is_dir():
            next(source.iterdir(), None)
        else:
            source.open("rb").close()
    except OSError as error:
        return "bad", f"cannot read {source}: {error.strerror}"
    kind, mount = file_system(source)
    notes = _not_shared(kind, mount) if shared else []
    return "note" if notes else "ok", "; ".join([f"{source} ({kind}) can be read", *notes])


def file_system(path: Path, mounts: Path = Path("/proc/self/mounts")) -> tuple[str, Path]:
    """Return the type of the file system that holds a path, or would hold it, and its mount point."""
    place = Path(os.path.realpath(path))
    lines = reversed(mounts.read_text().splitlines())  # a later mount hides an earlier one
    mounted = [(kind, Path(point.replace("\\040", " "))) for _, point, kind, *_ in map(str.split, lines)]
    return max((found for found in mounted if place.is_relative_to(found[1])), key=lambda found: len(found[1].parts))


def _trouble_with_names(trial: Path) -> str | None:
    """Try what every file of a run needs: exclusive creation, and a rename that replaces a file."""
    new = trial.with_name(f"{trial.name}.new")
    try:
        new.open("x").close()
        with suppress(FileExistsError):
            new.open("x").close()
            return "a file that exists can be created again: two sweeps could take one run"
        os.replace(new, trial)
        if trial.stat().st_size:
            return "a file that a rename should replace is still there: files could be half old and half new"
    except OSError as error:
        return f"cannot create and rename files: {error.strerror}"
    finally:
        new.unlink(missing_ok=True)
    return None


def _missing_locks(descriptor: int) -> list[str]:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        missing = f"no POSIX locks ({error.strerror}), which a run does not need"
        return [f"{missing}: processes may decode the same clips, two `score --watch` may write into one file"]
    return []


def _not_shared(kind: str, mount: Path) -> list[str]:
    detail = f"{mount} is probably a disk of this node, but all nodes of the job must see it"
    return [detail] if kind.startswith(_LOCAL_FILE_SYSTEMS) else []


def _judge(path: Path, kind: str, notes: list[str]) -> Checked:
    """Add the free space to the notes on a folder."""
    free = shutil.disk_usage(_nearest(path)).free
    if free < _LITTLE_SPACE:
        notes = [*notes, "little space: free some, or choose another folder"]
    detail = "; ".join([f"{path} ({kind}), {size(free)} free", *notes])
    return "bad" if free < _NO_SPACE else "note" if notes else "ok", detail


def _nearest(path: Path) -> Path:
    return next(existing for existing in (path, *path.parents) if existing.exists())
