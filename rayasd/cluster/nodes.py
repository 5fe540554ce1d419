"""Check that all nodes of a Ray cluster have the same packages, code and clock."""

import platform
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from rayasd import __version__
from rayasd.errors import UserError
from rayasd.host import PACKAGES, package_versions

_ANSWER_SECONDS = 60.0
_CLOCKS_DIFFER_SECONDS = 30.0


class Software(NamedTuple):
    """Versions that results may depend on."""

    versions: Mapping[str, str | None]
    code: str  # sha256 of our modules, since two checkouts may have one version


def software_here() -> Software:
    """Return what this process runs on."""
    modules = sorted(Path(__file__).parents[1].rglob("*.py"))
    code = sha256(b"".join(module.read_bytes() for module in modules)).hexdigest()
    python = ".".join(platform.python_version_tuple()[:2])
    return Software({"Python": python, "rayasd": __version__, **package_versions(PACKAGES)}, code)


def check_nodes(ray: Any, nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Compare every node with the driver's host; one that does not answer is not waited for.

    Returns what is odd, a line each. Raises UserError: a node has other software, so that its units would fail or give
    other numbers.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[look.options(name="look at node", scheduling_strategy=there).remote()] = node["NodeManagerHostname"]
    mine, notes, until = software_here(), [], time.monotonic() + _ANSWER_SECONDS
    while asked and time.monotonic() < until:
        for answer in ray.wait(list(asked), timeout=until - time.monotonic())[0]:
            notes += _judged(ray, answer, asked.pop(answer), mine)
    for silent, host in asked.items():
        ray.cancel(silent, force=True)
        notes.append(f"{host} has not answered for {_ANSWER_SECONDS:g} s")
    return notes


def _judged(ray: Any, answer: Any, host: str, mine: Software) -> list[str]:
    try:
        software, clock = ray.get(answer)
    except ray.exceptions.RayError as error:
        if host not in [node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]]:
            return [f"{host} was lost"]
        reason = next(iter(str(error).strip().splitlines()[::-1]), type(error).__name__)
        raise UserError(f"{host} cannot run rayasd: {reason[:200]}") from None
    theirs = software.versions
    odd = [name for name, version in mine.versions.items() if theirs.get(name) != version]
    different = [f"{name} {theirs.get(name)}, not {mine.versions[name]}" for name in odd]
    if software != mine:
        different = different or ["another rayasd of the same version"]
        raise UserError(f"{host} has {'; '.join(different)}: install the same on all nodes")
    off = clock - time.time()
    return [f"the clock of {host} is {off:+.0f} s off"] if abs(off) > _CLOCKS_DIFFER_SECONDS else []


def _look() -> tuple[Software, float]:
    return software_here(), time.time()
