"""Checks of what surrounds this process in its job: the launcher's variables, ports, Ray's address and token."""

import os
import re
import socket
from collections.abc import Mapping

from rayasd.cluster.daemon import free_ports
from rayasd.cluster.doctor import Said
from rayasd.cluster.placement import Placement, find_placement
from rayasd.cluster.settings import default_token_file
from rayasd.errors import UserError
from rayasd.host import why_silent

_LAUNCHER = re.compile(
    r"SLURM_(JOB_ID|STEP_ID|PROCID|NTASKS|NNODES|CPUS_PER_TASK|CPUS_ON_NODE|GPUS_ON_NODE|MEM_PER_NODE|MEM_PER_CPU)"
    r"|SLURMD_NODENAME|OMPI_COMM_WORLD_(RANK|SIZE)|PMI_(RANK|SIZE)|PMIX_(RANK|NAMESPACE)"
)


def launcher(environment: Mapping[str, str]) -> Said:
    """List what Slurm, PMI and OpenMPI say of this process."""
    found = {name: value for name, value in sorted(environment.items()) if _LAUNCHER.fullmatch(name)}
    if not found:
        return "ok", "no variables of Slurm, PMI or OpenMPI: this host alone"
    said = " ".join(f"{name}={value}" for name, value in found.items())
    tasks, nodes = (environment.get(f"SLURM_{name}", "") for name in ("NTASKS", "NNODES"))
    mpi = any(name.startswith(("OMPI", "PMI")) for name in found)
    if not mpi and tasks.isdecimal() and nodes.isdecimal() and int(tasks) > int(nodes):
        return "note", f"{said}: {tasks} tasks on {nodes} nodes; launch wants one a node: srun --ntasks-per-node=1"
    return "ok", said


def placement(environment: Mapping[str, str]) -> tuple[Said, Placement | None]:
    """Find what ``rayasd launch`` would make of the variables, and as much of it as can be known."""
    trouble = ""
    try:
        try:
            place = find_placement(environment)
        except UserError as error:
            trouble = str(error)
            place = find_placement(environment, job="doctor", address="127.0.0.1")
    except (UserError, ValueError) as error:
        return ("bad", trouble or f"the launcher's variables make no sense: {error}"), None
    said = f"rank {place.rank} of {place.size}, CPUs {place.cpus}, GPUs {place.gpus}"
    if trouble:
        return ("bad", f"{said}; {trouble}"), place
    return ("ok", f"{said}, address {place.address}, job {place.job}"), place


def ports(place: Placement | None) -> Said:
    """Look for a free block of ports at the address that Ray would use."""
    if place is None:
        return "note", "not looked for without a placement"
    try:
        with socket.socket() as trial:
            trial.bind((place.address, 0))
        return "ok", f"free from {free_ports(place.job, place.address, place.rank)} on"
    except OSError as error:
        return "bad", f"{place.address} is no address of this host ({error.strerror}): give launch --node-address"
    except UserError as error:
        return "bad", str(error)


def ray_address(environment: Mapping[str, str]) -> Said:
    """Ask whether anybody listens at ``RAY_ADDRESS``, where a sweep would go."""
    address = environment.get("RAY_ADDRESS", "")
    if not address or address == "local":
        return "ok", "RAY_ADDRESS is unset: a sweep starts a Ray of this host's own"
    match = re.fullmatch(r"(?:(\w+)://)?(.+):(\d{1,5})", address)
    if match is None:
        return "note", f"RAY_ADDRESS={address}: Ray finds out what that is"
    scheme, host, port = match.groups("ray")
    if scheme != "ray":
        return "bad", f"RAY_ADDRESS={address}: a sweep wants HOST:PORT of the cluster; the dashboard is for submit"
    if reason := why_silent(host, int(port)):
        return "bad", f"RAY_ADDRESS={address} does not answer ({reason}): unset it, or start that cluster"
    return "ok", f"RAY_ADDRESS={address} answers"


def ray_token(environment: Mapping[str, str]) -> Said:
    """Say which token Ray would show to a cluster; the token itself is never read."""
    mode = environment.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled":
        return "note", "RAY_AUTH_MODE=disabled: whoever reaches a port of your Ray runs code as you; unset it"
    if environment.get("RAY_AUTH_TOKEN"):
        return "ok", "in RAY_AUTH_TOKEN"
    file = default_token_file(environment)
    if not file.exists():
        if mode == "token" or "RAY_AUTH_TOKEN_PATH" in environment:
            return "bad", f"{file} is not there: write it, or unset RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH"
        return "ok", "none known; own clusters get one each, a standing one may want its own"
    if file.stat().st_mode & 0o077:
        return "note", f"{file} can be read by others: chmod 600 {file}"
    if not os.access(file, os.R_OK) or not file.stat().st_size:
        return "bad", f"{file} is empty or not yours to read: ask who runs the cluster"
    return "ok", f"in {file}"
