"""Facts about this process and its host: software, CPUs and GPUs as a batch system gave them, processes, ports."""

import ctypes
import fcntl
import multiprocessing
import os
import platform
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path, PurePosixPath
from typing import Any

from rayasd import __version__
from rayasd.files import now

PACKAGES = ("ray", "torch", "torchaudio", "timm", "scikit-learn", "numpy", "pyarrow", "soundfile")
_NO_GPU = ("", "-1", "NoDevFiles")  # the last is Slurm's word where it knows of no device files


def usable_cpus(environment: Mapping[str, str] = os.environ) -> int:
    """Count the CPUs: as Slurm says, but no more than this process may run on and its cgroup's quota allows."""
    usable = max(1, min(len(os.sched_getaffinity(0)), int(cpu_quota())))
    for variable in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if environment.get(variable, "").isdecimal():
            return min(int(environment[variable]), usable)
    return usable


def cpu_quota() -> float:
    """CPUs' worth of time that this process's cgroup and those above it allow; without bound, no less than all."""
    # Version 1 has the period in a file of its own; nobody changes its 100 ms.
    quotas = [(*text.split(), "100000")[:2] for text in cgroup_files("cpu", "cpu.max", "cpu.cfs_quota_us")]
    bounds = [int(quota) / int(period) for quota, period in quotas if quota not in ("max", "-1")]
    return min(bounds, default=float(os.cpu_count() or 1))


def cgroup_files(
    controller: str, new: str, old: str, own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> Iterator[str]:
    """Read a file of our own cgroup and of all above it, of version 2 (``new``) and version 1 (``old``)."""
    for line in own.read_text().splitlines() if own.exists() else []:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            bases, name = [root, root / "unified"], new
        elif controller in controllers.split(","):
            bases, name = [root / controller], old
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for base in bases:
            for folder in (group, *group.parents):
                with suppress(OSError):
                    yield (base / folder / name).read_text().strip()


def visible_gpus(environment: Mapping[str, str] = os.environ, driver: Path = Path("/proc/driver/nvidia")) -> list[str]:
    """List the GPUs, as ``CUDA_VISIBLE_DEVICES`` names them or by number, without importing torch.

    In a Slurm job that was given none, none is ours: the driver's list is of the whole host.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu.strip() not in _NO_GPU]
    given = any(name.startswith("SLURM_") and "GPU" in name and value for name, value in environment.items())
    if "SLURM_JOB_ID" in environment and not given:
        return []
    devices = driver / "gpus"
    return [str(number) for number in range(len(list(devices.iterdir())))] if devices.is_dir() else []


def describe_invocation(command: Sequence[str]) -> dict[str, Any]:
    """Return when, where, with which arguments and versions a command was run."""
    return {
        "time": now(),
        "command": list(command),
        "host": socket.gethostname(),
        "rayasd": __version__,
        "revision": git_revision(),
        "python": platform.python_version(),
        "packages": package_versions(PACKAGES),
    }


def git_revision() -> str | None:
    """Revision of the source tree that rayasd runs from, with + where it has uncommitted changes."""
    folder = Path(__file__).parent
    try:
        output = subprocess.run(
            ["git", "-C", folder, "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return output.stdout.strip()


def package_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the versions of packages; None for one that is not installed."""
    found: dict[str, str | None] = dict.fromkeys(packages)
    for name in found:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def address_of(interface: str) -> str | None:
    """Return the IPv4 address of a network interface of this host; None where there is no such one (Linux)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, suppress(OSError):
        answer = fcntl.ioctl(asking.fileno(), 0x8915, struct.pack("256s", os.fsencode(interface)[:15]))  # SIOCGIFADDR
        return socket.inet_ntoa(answer[20:24])
    return None


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Ask the kernel to end this process with its parent, even if that is killed (Linux); may run before an exec."""
    ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # before the kernel was asked
        os.kill(os.getpid(), number)


class _Spawned(SpawnProcess):
    """A spawned process that does not run the script of its parent, which might start another sweep."""

    def start(self) -> None:
        """Start it, with the parent's main module out of sight."""
        main = vars(sys.modules["__main__"])
        hidden: dict[str, Any] = {name: main.pop(name) for name in ("__spec__", "__file__") if name in main}
        main["__spec__"] = None
        try:
            super().start()
        finally:
            main.update(hidden)


class _Spawning(SpawnContext):
    Process = _Spawned


spawning = _Spawning()
"""For processes that are not forked: a forked child has threads' locks, and torch's threads, in an unknown state."""


@contextmanager
def worker_pool(num_processes: int) -> Iterator[ProcessPoolExecutor]:
    """Give processes that leave Ctrl-C to us and end with us, even if we are killed."""
    pool = ProcessPoolExecutor(num_processes, spawning, initializer=_begin_to_work)
    try:
        yield pool
    except BaseException:
        for process in list((pool._processes or {}).values()):  # else shutdown would wait for their work
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_to_work() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let this process keep what it frees for its next allocations, until the block ends (glibc).

    Otherwise glibc hands each large tensor or array back to the kernel at once, and the next one's pages come fresh,
    zeroed and one fault at a time: a third of the processor time of a training step.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(-4, 0)  # M_MMAP_MAX: from the heap, whatever the size
    libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: which never shrinks
    try:
        yield
    finally:
        libc.malloc_trim(0)


def how_it_ended(code: int) -> str:
    """Return how a process ended, from the exit code as ``subprocess`` gives it: negative for a signal."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def why_silent(host: str, port: int, seconds: float = 5.0) -> str:
    """Return why nothing answers at a port; empty if something does."""
    try:
        socket.create_connection((host, port), timeout=seconds).close()
    except (OSError, OverflowError) as error:
        return str(error)
    return ""
