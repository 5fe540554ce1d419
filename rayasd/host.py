"""What this process has to do with its host: CPUs and GPUs as a batch system gave them, other processes, ports."""

import ctypes
import multiprocessing
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def usable_cpus(environment: Mapping[str, str] = os.environ) -> int:
    """Count the CPUs: as Slurm says, but no more than this process may run on."""
    usable = len(os.sched_getaffinity(0))
    for variable in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if environment.get(variable, "").isdecimal():
            return min(int(environment[variable]), usable)
    return usable


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """List the GPUs, as ``CUDA_VISIBLE_DEVICES`` names them or by number, without importing torch."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu.strip() and gpu.strip() != "-1"]
    devices = Path("/proc/driver/nvidia/gpus")
    return [str(number) for number in range(len(list(devices.iterdir())))] if devices.is_dir() else []


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Ask the kernel to end this process with its parent, even if that is killed (Linux); may run before an exec."""
    ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # before the kernel was asked
        os.kill(os.getpid(), number)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let this process keep what it frees for its next allocations, until the block ends (glibc; elsewhere nothing).

    Otherwise glibc hands each large tensor or array back to the kernel at once, and the next one's pages come fresh,
    zeroed and one fault at a time: a third of the processor time of a training step.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(-4, 0)  # M_MMAP_MAX: from the heap, whatever the size
    libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: which never shrinks
    try:
        yield
    finally:
        libc.malloc_trim(0)


def how_it_ended(code: int) -> str:
    """Say how a process ended, from the exit code as ``subprocess`` gives it: negative for a signal."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def why_silent(host: str, port: int, seconds: float = 5.0) -> str:
    """Say why nobody answers at a port; empty if somebody does."""
    try:
        socket.create_connection((host, port), timeout=seconds).close()
    except (OSError, OverflowError) as error:
        return str(error)
    return ""
