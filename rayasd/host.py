"""What this process may use of its host: CPUs and GPUs, as a batch system gave them."""

import os
from collections.abc import Mapping
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
