"""All checks of a node, one after the other."""

from collections.abc import Callable, Mapping
from pathlib import Path

from rayasd.cluster.doctor import Finding, Said, job, node, software
from rayasd.cluster.folder import root_of_own
from rayasd.errors import one_line


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
    placed, place = job.placement(environment)
    several = place is not None and place.size > 1
    checks: dict[str, Callable[[], Said]] = {
        "packages": software.packages,
        "torch, GPUs": lambda: software.torch_and_gpus(environment, place),
        "MPI": lambda: software.mpi(place),
        "CPUs": lambda: node.cpus(environment),
        "threads": lambda: node.threads(environment),
        "open files": node.open_files,
        "memory": node.memory,
        "/dev/shm": node.shared_memory,
        "temp folder": lambda: node.temp_folder(temp_root),
        "a sweep's own": lambda: node.temp_folder(root_of_own(environment)),
        "run folder": lambda: node.folder(run_dir, shared=several),
        "cache folder": lambda: node.folder(cache, local=True),
        "data": lambda: node.recordings(data, shared=several),
        "launcher": lambda: job.launcher(environment),
        "placement": lambda: placed,
        "ports": lambda: job.ports(place),
        "Ray address": lambda: job.ray_address(environment),
        "Ray token": lambda: job.ray_token(environment),
    }
    findings = []
    for what, check in checks.items():
        try:
            state, said = check()
        except Exception as error:
            state, said = "bad", f"could not be checked: {type(error).__name__}: {one_line(error)}"
        findings.append(Finding(what, state, said))
    return findings
