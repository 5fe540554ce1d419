"""Checks of what is installed: packages, torch with its GPUs, MPI."""

import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from rayasd.cluster.doctor import Said
from rayasd.cluster.placement import Placement
from rayasd.wording import size

_ASK_TORCH = """
import json, soundfile, torch, torchaudio
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


def packages() -> Said:
    """Compare Python and the installed packages with what rayasd asks for."""
    try:
        python = importlib.metadata.metadata("rayasd")["Requires-Python"]
    except importlib.metadata.PackageNotFoundError:
        return "note", f"rayasd is not installed in {sys.executable}: what it requires is unknown"
    found = {"Python": ".".join(map(str, sys.version_info[:3]))}
    wrong = []
    for asked in map(Requirement, [f"Python{python}", *(importlib.metadata.requires("rayasd") or ())]):
        if asked.marker is not None and not asked.marker.evaluate({"extra": ""}):
            continue
        if asked.name not in found:
            with suppress(importlib.metadata.PackageNotFoundError):
                found[asked.name] = importlib.metadata.version(asked.name)
        version = found.get(asked.name)
        if version is None or not asked.specifier.contains(version, prereleases=True):
            wrong.append(f"{asked.name} {version or 'is not installed'}, rayasd needs {asked.specifier}")
    if wrong:
        return "bad", f"{'; '.join(wrong)} (in {sys.executable})"
    return "ok", f"{', '.join(f'{name} {version}' for name, version in found.items())} (in {sys.executable})"


def torch_and_gpus(environment: Mapping[str, str], place: Placement | None) -> Said:
    """Load the libraries that bring code of their own, and compute something on every GPU that torch sees."""
    answer, trouble = _ask(_ASK_TORCH, 180)
    if answer is None:
        return "bad", f"torch, torchaudio and soundfile do not load: {trouble}"
    gpus, driver, visible = answer["gpus"], _driver(), environment.get("CUDA_VISIBLE_DEVICES")
    kinds = Counter(f"{gpu['name']}, {size(gpu['bytes'])}, capability {gpu['capability']}" for gpu in gpus)
    said = "; ".join(f"{count} × {kind}" for kind, count in kinds.items()) or "no GPU"
    said += "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
    built = f"CUDA {answer['cuda']}" if answer["cuda"] else "CPUs"
    said += f"; torch for {built}, driver {driver or 'not found'}"
    wrong = [f"GPU {i}: {gpu['trouble']}" for i, gpu in enumerate(gpus) if gpu["trouble"]]
    given = len(gpus) if place is None else place.gpus
    if given > len(gpus):
        wrong.append(f"launch would offer {given}, but torch sees {len(gpus)}")
    if wrong:
        return "bad", "; ".join([said, *wrong])
    if given < len(gpus):
        return "note", f"{said}; launch would offer {given}: give --gpus {len(gpus)}, unless that is meant"
    if not gpus:
        return "note" if driver and visible is None else "ok", f"{said}; units train on CPUs"
    return "ok", said


def _driver() -> str | None:
    with suppress(OSError):
        match = re.search(r"Kernel Module\s.*?(\d+\.\d[\d.]*)", Path("/proc/driver/nvidia/version").read_text())
        return match[1] if match else "unknown"
    return None


def mpi(place: Placement | None) -> Said:
    """Start MPI in a process of its own, since that can abort, and compare its world with the launcher's."""
    if importlib.util.find_spec("mpi4py") is None:
        return "ok", "mpi4py is not installed; where you want MPI: pip install 'rayasd[mpi]'"
    answer, trouble = _ask(_ASK_MPI, 60)
    if answer is None:
        return "note", f"mpi4py does not start: {trouble}"
    world, launched = answer["size"], 1 if place is None else place.size
    said = f"{answer['library']}, world of size {world}"
    if world != launched:
        how = "start with its own mpirun, or srun --mpi=pmi2 (MPICH) or --mpi=pmix (OpenMPI)"
        return "note", f"{said}, but {launched} launched: {how}"
    return "ok", said


def _ask(code: str, seconds: float) -> tuple[Any, str]:
    """Run Python code that prints JSON, in a process of its own; returns (None, why) if it fails."""
    try:  # the descriptors stay open: PMI speaks through one of them
        done = subprocess.run(
            [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=seconds, check=False, close_fds=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, f"no answer within {seconds:g} s"
    if done.returncode == 0:
        with suppress(ValueError, IndexError):
            return json.loads(done.stdout.splitlines()[-1]), ""
    said = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
    return None, f"exit code {done.returncode}: {said[:300]}"
