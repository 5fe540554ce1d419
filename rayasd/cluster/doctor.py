"""What could stop a sweep on this node, looked at before hours go into it; each check returns what it found."""

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rayasd.cluster.daemon import OBJECT_STORE_BYTES, free_ports, temporary_folder
from rayasd.cluster.jobs import default_token_file
from rayasd.cluster.placement import Placement, find_placement
from rayasd.errors import UserError
from rayasd.files import write_text

State = Literal["ok", "note", "bad"]

_NETWORK = ("nfs", "lustre", "beegfs", "gpfs", "cifs", "smb", "ceph", "glusterfs", "afs", "9p", "panfs", "pvfs2",
            "orangefs", "wekafs", "fuse.sshfs", "fuse.glusterfs", "fuse.juicefs", "fuse.ceph")  # fmt: skip
_OF_ONE_NODE = ("ext", "xfs", "btrfs", "zfs", "tmpfs", "ramfs", "overlay")
_LAUNCHER = re.compile(
    r"SLURM_(JOB_ID|STEP_ID|PROCID|NTASKS|NNODES|CPUS_PER_TASK|CPUS_ON_NODE|GPUS_ON_NODE|MEM_PER_NODE|MEM_PER_CPU)"
    r"|SLURMD_NODENAME|OMPI_COMM_WORLD_(RANK|SIZE)|PMI_(RANK|SIZE)|PMIX_(RANK|NAMESPACE)"
)
_LITTLE_MEMORY, _LITTLE_SPACE, _NO_SPACE = 4e9, 5e9, 2e8
_CLOCKS_DIFFER_SECONDS = 5.0

_ASK_TORCH = """
import json, torch, torchaudio
def trouble(i):
    try:
        torch.ones(2, device=f"cuda:{i}").sum().item()
    except Exception as error:
        return str(error).splitlines()[0]
gpus = []
for i in range(torch.cuda.device_count()):
    gpu = torch.cuda.get_device_properties(i)
    gpus.append({"name": gpu.name, "bytes": gpu.total_memory, "capability": f"{gpu.major}.{gpu.minor}",
                 "trouble": trouble(i)})
print(json.dumps({"cuda": torch.version.cuda, "gpus": gpus}))
"""
_ASK_MPI = """
import json
from mpi4py import MPI
library = MPI.Get_library_version().strip("\\0").split("\\n")[0].split(",")[0].strip()
print(json.dumps({"size": MPI.COMM_WORLD.Get_size(), "library": library}))
"""


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    what: str
    state: State
    said: str
    """What was found and, unless it is ok, what to do."""


def examine(
    environment: Mapping[str, str], *, run_dir: Path, cache: Path, data: Path | None, temp_root: Path
) -> list[Finding]:
    """Do all checks; one that fails itself is a finding too.

    Args:
        environment: of this process.
        run_dir: where results are to go; need not be there.
        cache: for decoded waveforms; need not be there.
        data: folder or manifest, if any is known.
        temp_root: node-local folder for Ray's own files.

    """
    placed, place = placement(environment)
    several = place is not None and place.size > 1
    checks: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("packages", packages),
        ("sound files", sound_files),
        ("GPUs", lambda: torch_and_gpus(environment, place)),
        ("CPUs", lambda: cpus(place)),
        ("memory", memory),
        ("threads", lambda: threads(environment)),
        ("/dev/shm", shared_memory),
        ("temp folder", lambda: temp_folder(temp_root)),
        ("run folder", lambda: folder("run folder", run_dir, shared=several)),
        ("this folder", lambda: folder("this folder", Path.cwd(), shared=several)),
        ("cache folder", lambda: folder("cache folder", cache)),
        ("clock", lambda: clock(run_dir)),
        ("data", lambda: recordings(data, shared=several)),
        ("launcher", lambda: launcher(environment)),
        ("placement", lambda: placed),
        ("MPI", lambda: mpi(place)),
        ("ports", lambda: ports(place)),
        ("Ray address", lambda: ray_address(environment)),
        ("Ray token", lambda: ray_token(environment)),
    ]
    findings = []
    for what, check in checks:
        try:
            findings += check()
        except Exception as error:
            reason = " ".join(str(error).split())
            findings.append(Finding(what, "bad", f"could not be checked: {type(error).__name__}: {reason}"))
    return findings


def packages() -> list[Finding]:
    """Compare Python and the installed packages with what rayasd asks for."""
    running = ".".join(map(str, sys.version_info[:3]))
    try:
        metadata = importlib.metadata.metadata("rayasd")
    except importlib.metadata.PackageNotFoundError:
        return [Finding("Python", "ok", f"{running}, {sys.executable}"),
                Finding("packages", "note", "rayasd is not installed here: its requirements are unknown")]  # fmt: skip
    asked = str(metadata["Requires-Python"] or "")
    state: State = "ok" if SpecifierSet(asked).contains(running) else "bad"
    python = Finding("Python", state, f"{running}, {sys.executable}" + ("" if state == "ok" else f"; needs {asked}"))
    requirements = [Requirement(text) for text in importlib.metadata.requires("rayasd") or ()]
    found: dict[str, str] = {}
    findings = []
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found[requirement.name] = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(requirement.name, "bad", "not installed: pip install rayasd brings it"))
            continue
        if not requirement.specifier.contains(found[requirement.name], prereleases=True):
            said = f"{found[requirement.name]}; rayasd needs {requirement.specifier}"
            findings.append(Finding(requirement.name, "bad", said))
    findings += _same_minor(found.get("torch"), found.get("torchaudio"))
    listed = ", ".join(f"{name} {version}" for name, version in found.items())
    return [python, Finding("packages", "ok", listed), *findings]


def _same_minor(torch: str | None, torchaudio: str | None) -> list[Finding]:
    if torch and torchaudio and torch.split(".")[:2] != torchaudio.split(".")[:2]:
        said = f"{torchaudio} with torch {torch}: install the pair of one minor version"
        return [Finding("torchaudio", "bad", said)]
    return []


def sound_files() -> list[Finding]:
    """Load the library that reads recordings."""
    try:
        import soundfile
    except (ImportError, OSError) as error:
        return [Finding("sound files", "bad", f"soundfile does not load ({error}): pip install --force soundfile")]
    said = f"soundfile {soundfile.__version__}, libsndfile {soundfile.__libsndfile_version__}"
    return [Finding("sound files", "ok", said)]


def torch_and_gpus(environment: Mapping[str, str], place: Placement | None) -> list[Finding]:
    """Load torch and torchaudio, and compute something on every GPU that torch sees."""
    answer, trouble = _ask(_ASK_TORCH, 180)
    if answer is None:
        return [Finding("torch", "bad", f"torch and torchaudio do not load: {trouble}")]
    driver = None
    with suppress(OSError):
        match = re.search(r"Kernel Module\s.*?(\d+\.\d[\d.]*)", Path("/proc/driver/nvidia/version").read_text())
        driver = match[1] if match else "unknown"
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    given = None if place is None else place.gpus
    return [
        Finding("torch", "ok", f"loads, with torchaudio; {_built_for(answer['cuda'])}"),
        *judge_gpus(answer["gpus"], cuda=answer["cuda"], driver=driver, visible=visible, given=given),
    ]


def _built_for(cuda: str | None) -> str:
    return f"built for CUDA {cuda}" if cuda else "built without CUDA"


def judge_gpus(
    gpus: Sequence[Mapping[str, Any]], *, cuda: str | None, driver: str | None, visible: str | None, given: int | None
) -> list[Finding]:
    """Judge the GPUs that torch sees.

    Args:
        gpus: name, bytes, capability, trouble (None if it computes) of each.
        cuda: version that torch was built for.
        driver: version of the driver, if there is one.
        visible: ``CUDA_VISIBLE_DEVICES``.
        given: number that ``rayasd launch`` would offer.

    """
    findings = []
    for i, gpu in enumerate(gpus):
        said = f"{gpu['name']}, {_size(gpu['bytes'])}, capability {gpu['capability']}, driver {driver}"
        trouble = gpu["trouble"]
        findings.append(Finding(f"GPU {i}", "bad" if trouble else "ok", f"{said}: {trouble}" if trouble else said))
    variable = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
    if given is not None and given > len(gpus):
        why = f"torch is {_built_for(None)}" if cuda is None else f"driver {driver}" if driver else "no driver found"
        said = f"launch would offer {given}, but torch sees {len(gpus)}{variable}: {why}"
        findings.append(Finding("GPUs", "bad", said))
    elif given is not None and given < len(gpus):
        said = f"launch would offer {given} of {len(gpus)}{variable}: give --gpus {len(gpus)}, unless that is meant"
        findings.append(Finding("GPUs", "note", said))
    elif not gpus and driver and visible is None:
        said = f"driver {driver} is here, but torch, {_built_for(cuda)}, sees no GPU: units would train on CPUs"
        findings.append(Finding("GPUs", "note", said))
    elif not gpus:
        findings.append(Finding("GPUs", "ok", f"none{variable}: units train on CPUs"))
    return findings


def cpus(place: Placement | None) -> list[Finding]:
    """Compare the CPUs that this process may use with those that ``rayasd launch`` would offer."""
    usable, quota = len(os.sched_getaffinity(0)), min(_cpu_quotas(), default=None)
    given = usable if place is None else place.cpus
    said = f"{usable} of {os.cpu_count()} usable, launch would offer {given}"
    if given > usable:
        return [Finding("CPUs", "bad", f"{said}: give srun --cpus-per-task={given} too, or launch --cpus {usable}")]
    if quota is not None and quota < given:
        return [Finding("CPUs", "note", f"{said}, but the cgroup allows {quota:g}: give --cpus {max(1, int(quota))}")]
    return [Finding("CPUs", "ok", said)]


def memory() -> list[Finding]:
    """Look for the memory limit of this job; Ray looks at the root of the cgroups only."""
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    files = _cgroup_files("memory", "memory.max", "memory.limit_in_bytes")
    limits = [int(text) for _, text in files if text.isdecimal()]
    limit = min([host, *limits])
    said = f"{_size(limit)} for this cgroup, {_size(host)} on the host" if limit < host else f"{_size(host)}, no limit"
    if limit < _LITTLE_MEMORY:
        return [
            Finding("memory", "note", f"{said}: little, since a unit takes 1 GB before its data: ask for more (--mem)")
        ]
    return [Finding("memory", "ok", said)]


def _cpu_quotas() -> Iterator[float]:
    for file, text in _cgroup_files("cpu", "cpu.max", "cpu.cfs_quota_us"):
        quota, *period = text.split()
        if quota not in ("max", "-1"):
            yield int(quota) / int(period[0] if period else (file.parent / "cpu.cfs_period_us").read_text())


def _cgroup_files(
    controller: str, new: str, old: str, own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> Iterator[tuple[Path, str]]:
    """Read a file of our own cgroup and of all above it, of version 2 (``new``) and version 1 (``old``)."""
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            bases, name = (root, root / "unified"), new
        elif controller in controllers.split(","):
            bases, name = (root / controllers, root / controller), old
        else:
            continue
        group = PurePosixPath(path)
        for base in dict.fromkeys(bases):
            for folder in (group, *group.parents):
                file = base / folder.relative_to("/") / name
                with suppress(OSError):
                    yield file, file.read_text().strip()


def threads(environment: Mapping[str, str]) -> list[Finding]:
    """Look at ``OMP_NUM_THREADS``."""
    number = environment.get("OMP_NUM_THREADS") or "unset"
    if number in ("unset", "1"):
        return [Finding("threads", "ok", f"OMP_NUM_THREADS is {number}; units have as many as --cpus-per-unit says")]
    said = f"OMP_NUM_THREADS={number}: what rayasd does not limit itself takes that many in every unit; better unset"
    return [Finding("threads", "note", said)]


def shared_memory() -> list[Finding]:
    """Compare the shared memory with the object store that we ask for."""
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError as error:
        free, why = 0, f"{error.strerror}: "
    else:
        why = ""
    said = f"{why}{_size(free)} free, {_size(OBJECT_STORE_BYTES)} wanted for Ray's object store"
    if free < OBJECT_STORE_BYTES:
        return [Finding("/dev/shm", "note", f"{said}: Ray falls back to slower files in the temp folder")]
    return [Finding("/dev/shm", "ok", said)]


def temp_folder(root: Path) -> list[Finding]:
    """Make the folder that Ray's own files would go to: writable, its path short enough, not on a network."""
    root = root.absolute()
    kind, _ = file_system(root)
    try:
        with _made(root):
            made = temporary_folder(root, f"doctor {socket.gethostname()} {os.getpid()}")
            try:
                write_text(made / "trial", "1")
            finally:
                shutil.rmtree(made, ignore_errors=True)
    except UserError as error:
        return [Finding("temp folder", "bad", str(error))]
    except OSError as error:
        return [Finding("temp folder", "bad", f"{root}: {error.strerror}; choose another --temp-dir")]
    if kind.startswith(_NETWORK):
        said = f"{root} is on {kind}: Ray's sockets and logs want a disk of this node; choose another --temp-dir"
        return [Finding("temp folder", "note", said)]
    return [_room("temp folder", root, kind)]


def folder(what: str, path: Path, *, shared: bool = False) -> list[Finding]:
    """Write, move and read a file as runs do; ``shared``: all nodes of the job must see the folder."""
    path = path.absolute()
    kind, mount = file_system(path)
    trial = path / f".rayasd-doctor-{socket.gethostname()}-{os.getpid()}"
    try:
        with _made(path):
            try:
                for text in ("1", "2"):
                    write_text(trial, text)
                if (read := trial.read_text()) != "2":
                    return [Finding(what, "bad", f"{path} ({kind}) gave back {read!r} for '2': do not keep runs there")]
            finally:
                trial.unlink(missing_ok=True)
    except OSError as error:
        return [Finding(what, "bad", f"cannot write {path}: {error.strerror}")]
    if shared and kind.startswith(_OF_ONE_NODE):
        said = f"{path} is on {kind} at {mount}, most likely of this node alone: all nodes of the job must see it"
        return [Finding(what, "note", said)]
    return [_room(what, path, kind)]


def clock(path: Path) -> list[Finding]:
    """Compare this node's clock with the one that dates files in a folder."""
    path = path.absolute()
    trial = path / f".rayasd-clock-{socket.gethostname()}-{os.getpid()}"
    try:
        with _made(path):
            try:
                trial.write_text("")
                seconds = trial.stat().st_mtime - time.time()
            finally:
                trial.unlink(missing_ok=True)
    except OSError as error:
        return [Finding("clock", "note", f"not compared with that of the files in {path}: {error.strerror}")]
    if abs(seconds) > _CLOCKS_DIFFER_SECONDS:
        said = f"files in {path} are dated {seconds:+.0f} s from this node's clock: times of a run will look wrong"
        return [Finding("clock", "note", f"{said}; ask for NTP")]
    return [Finding("clock", "ok", "agrees with that of the run folder's file system")]


def recordings(source: Path | None, *, shared: bool = False) -> list[Finding]:
    """Look whether the data can be read; what is in them is ``rayasd data check``'s to say."""
    if source is None:
        return [Finding("data", "ok", "none named (--data ROOT)")]
    source = source.absolute()
    try:
        if source.is_dir():
            next(source.iterdir(), None)
        else:
            source.open("rb").close()
    except OSError as error:
        return [Finding("data", "bad", f"cannot read {source}: {error.strerror}")]
    kind, mount = file_system(source)
    if shared and kind.startswith(_OF_ONE_NODE):
        said = f"{source} is on {kind} at {mount}, most likely of this node alone: all nodes must read the same data"
        return [Finding("data", "note", said)]
    return [Finding("data", "ok", f"{source} can be read ({kind}); rayasd data check looks inside")]


def launcher(environment: Mapping[str, str]) -> list[Finding]:
    """List what Slurm, PMI and OpenMPI say of this process."""
    found = {name: value for name, value in sorted(environment.items()) if _LAUNCHER.fullmatch(name)}
    if not found:
        return [Finding("launcher", "ok", "no variables of Slurm, PMI or OpenMPI: this host alone")]
    said = " ".join(f"{name}={value}" for name, value in found.items())
    tasks, nodes = (environment.get(f"SLURM_{name}", "") for name in ("NTASKS", "NNODES"))
    mpi = any(name.startswith(("OMPI", "PMI")) for name in found)
    if not mpi and tasks.isdecimal() and nodes.isdecimal() and int(tasks) > int(nodes):
        said += f": {tasks} tasks on {nodes} nodes; launch wants one a node: srun --ntasks-per-node=1"
        return [Finding("launcher", "note", said)]
    return [Finding("launcher", "ok", said)]


def placement(environment: Mapping[str, str]) -> tuple[list[Finding], Placement | None]:
    """Find what ``rayasd launch`` would make of the variables, and as much of it as can be known."""
    trouble = None
    try:
        try:
            place = find_placement(environment)
        except UserError as error:
            trouble = str(error)
            place = find_placement(environment, job="doctor", address="127.0.0.1")
    except (UserError, ValueError) as error:
        said = trouble or f"the launcher's variables make no sense: {error}"
        return [Finding("placement", "bad", said)], None
    said = f"rank {place.rank} of {place.size}, CPUs {place.cpus}, GPUs {place.gpus}"
    if trouble:
        return [Finding("placement", "bad", f"{said}; {trouble}")], place
    return [Finding("placement", "ok", f"{said}, address {place.address}, job {place.job}")], place


def mpi(place: Placement | None) -> list[Finding]:
    """Start MPI in a process of its own, since that can abort, and compare its world with the launcher's."""
    if importlib.util.find_spec("mpi4py") is None:
        return [Finding("MPI", "ok", "mpi4py is not installed; where you want MPI: pip install 'rayasd[mpi]'")]
    answer, trouble = _ask(_ASK_MPI, 60)
    if answer is None:
        return [Finding("MPI", "note", f"mpi4py does not start: {trouble}")]
    world, launched = answer["size"], 1 if place is None else place.size
    said = f"{answer['library']}, world of size {world}"
    if world != launched:
        worlds = f"{launched} worlds of size 1" if world == 1 else f"a world of size {world}, but {launched} launched"
        how = "start with its own mpirun, or srun --mpi=pmi2 (MPICH) or --mpi=pmix (OpenMPI)"
        return [Finding("MPI", "note", f"{answer['library']}, {worlds}: {how}")]
    return [Finding("MPI", "ok", said)]


def ports(place: Placement | None) -> list[Finding]:
    """Look for a free block of ports at the address that Ray would use."""
    if place is None:
        return [Finding("ports", "note", "not looked for without a placement")]
    try:
        with socket.socket() as trial:
            trial.bind((place.address, 0))
    except OSError as error:
        said = f"{place.address} is no address of this host ({error.strerror}): give launch --node-address"
        return [Finding("ports", "bad", said)]
    try:
        return [Finding("ports", "ok", f"free from {free_ports(place.job, place.address, place.rank)} on")]
    except UserError as error:
        return [Finding("ports", "bad", str(error))]


def ray_address(environment: Mapping[str, str]) -> list[Finding]:
    """Ask whether anybody listens at ``RAY_ADDRESS``, where a sweep would go."""
    address = environment.get("RAY_ADDRESS", "")
    if not address or address == "local":
        return [Finding("Ray address", "ok", "RAY_ADDRESS is unset: a sweep starts a Ray of this host's own")]
    match = re.fullmatch(r"(?:(\w+)://)?(.+):(\d{1,5})", address)
    if match is None:
        return [Finding("Ray address", "note", f"RAY_ADDRESS={address}: Ray finds out what that is")]
    if (match[1] or "ray") != "ray":
        said = f"RAY_ADDRESS={address}: a sweep wants HOST:PORT of the cluster itself; the dashboard is for submit"
        return [Finding("Ray address", "bad", said)]
    try:
        socket.create_connection((match[2], int(match[3])), timeout=5).close()
    except (OSError, OverflowError) as error:
        said = f"RAY_ADDRESS={address} does not answer ({error}): unset it, or start that cluster"
        return [Finding("Ray address", "bad", said)]
    return [Finding("Ray address", "ok", f"RAY_ADDRESS={address} answers")]


def ray_token(environment: Mapping[str, str]) -> list[Finding]:
    """Say which token Ray would show to a cluster; the token itself is never read."""
    what, mode = "Ray token", environment.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled":
        said = "RAY_AUTH_MODE=disabled: whoever reaches a port of your Ray runs code as you; unset it"
        return [Finding(what, "note", said)]
    if environment.get("RAY_AUTH_TOKEN"):
        return [Finding(what, "ok", "in RAY_AUTH_TOKEN")]
    file = default_token_file(environment)
    named = "RAY_AUTH_TOKEN_PATH" in environment
    try:
        status = file.stat()
    except OSError as error:
        if named:
            return [Finding(what, "bad", f"RAY_AUTH_TOKEN_PATH={file}: {error.strerror}; unset it, or write the file")]
        if mode == "token":
            said = f"RAY_AUTH_MODE=token, but no token: unset that, or set RAY_AUTH_TOKEN_PATH ({file} is not there)"
            return [Finding(what, "bad", said)]
        return [Finding(what, "ok", "none known; own clusters get one each, a standing one may want its own")]
    if status.st_mode & 0o077:
        return [Finding(what, "note", f"{file} can be read by others: chmod 600 {file}")]
    if not os.access(file, os.R_OK) or not status.st_size:
        return [Finding(what, "bad", f"{file} is empty or not yours to read: ask who runs the cluster")]
    return [Finding(what, "ok", f"in {file}")]


def file_system(path: Path, mounts: Path = Path("/proc/self/mounts")) -> tuple[str, Path]:
    """Find the type of the file system that a path is on or would be on, and where that is mounted."""
    place = Path(os.path.realpath(path))
    kind, best = "unknown", Path("/")
    for line in mounts.read_text().splitlines():
        mount, found = line.split()[1:3]
        point = Path(mount.replace("\\040", " "))
        if place.is_relative_to(point) and len(point.parts) >= len(best.parts):  # a later mount hides an earlier one
            kind, best = found, point
    return kind, best


def _room(what: str, path: Path, kind: str) -> Finding:
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    said = f"{path} ({kind}), {_size(free)} free"
    if free < _NO_SPACE:
        return Finding(what, "bad", f"{said}: make room, or choose another")
    return Finding(what, "note", f"{said}: little") if free < _LITTLE_SPACE else Finding(what, "ok", said)


@contextmanager
def _made(path: Path) -> Iterator[Path]:
    """Make a folder for the time of a check; what was not there before is removed again."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield path
    finally:
        for made in missing:
            with suppress(OSError):
                made.rmdir()


def _ask(code: str, seconds: float) -> tuple[Any, str]:
    """Run Python code that prints JSON, in a process of its own; returns (None, why) if it fails."""
    try:  # the descriptors stay open: PMI speaks through one of them
        done = subprocess.run(
            [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=seconds, check=False, close_fds=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, f"no answer within {seconds:g} s"
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        with suppress(ValueError):
            return json.loads(lines[-1]), ""
    said = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
    return None, f"exit code {done.returncode}: {said[:300]}"


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
