"""One node's Ray: the command that starts it, its ports, and the end of exactly the processes that it started."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from math import ceil
from pathlib import Path

from rayasd.cluster import settings
from rayasd.cluster.folder import LOGS, RAYS, copy_logs
from rayasd.cluster.placement import Placement
from rayasd.errors import UserError
from rayasd.host import end_with_parent
from rayasd.printing import tell

_STEP = 100  # a block is one such hundred of ports or several
_FIRST_PORT, _END = 20000, 32000  # above Ray's own defaults, below the ports that systems give to clients
_NAMED_PORTS = (
    "port", "node-manager-port", "object-manager-port", "ray-client-server-port", "dashboard-port",
    "dashboard-agent-grpc-port", "dashboard-agent-listen-port", "runtime-env-agent-port", "metrics-export-port",
)  # fmt: skip
_HEAD_ONLY = {"port", "ray-client-server-port", "dashboard-port"}
_METRIC_PORTS = ("DASHBOARD_METRIC_PORT", "AUTOSCALER_METRIC_PORT")  # variables; the same for every head otherwise
_HELD_PORT = 19  # of each hundred; the launcher holds it, so that no other takes the block before Ray has its ports
_WORKER_PORTS_FROM = 20  # the rest of the block is for workers
_MORE_WORKERS = 10  # than CPUs: drivers and what looks at nodes take ports, too

SETTINGS = {
    **settings.SETTINGS,
    "RAY_AUTH_MODE": "token",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "15",  # workers leave 15 s after a lost head, not 60; 5 kills the driver
    "RAY_grpc_client_keepalive_time_ms": "10000",  # a host that dies without a word is noticed in 20 s, not in 420
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
}
"""Environment of every Ray process of the job, and of the driver."""


@dataclass
class RayNode:
    """Ray on this node, in the foreground of a process of ours (``ray start --block``): ending that ends all of it."""

    placement: Placement
    environment: Mapping[str, str]
    ports: int  # first of the block
    folder: Path  # private, with Ray's own files in it: node-local, and the same path on all nodes, as Ray has it
    dashboard_host: str = "127.0.0.1"
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    head_address: str | None = None  # None: this is the head's
    holds: Sequence[socket.socket] = ()  # of the block

    @property
    def log(self) -> Path:
        """Output of ``ray start``."""
        return self.folder / f"start-{self.placement.rank}.log"

    def start(self, head_address: str | None) -> None:
        """Start Ray: the head where ``head_address`` is None, else a worker of the one there."""
        self.starts, self.head_address = self.starts + 1, head_address
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env={**self.environment, **metric_ports(self.ports)}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=end_with_parent,
            )  # fmt: skip

    @property
    def command(self) -> list[str]:
        """The words of ``ray start``. All that Ray would guess is said: it guesses for a whole host."""
        block = range(self.ports, self.ports + block_size(self.placement.cpus))
        options: dict[str, object] = {
            "node-ip-address": self.placement.address,
            "num-cpus": self.placement.cpus,
            "num-gpus": self.placement.gpus,
            "object-store-memory": settings.OBJECT_STORE_BYTES,
            "worker-port-list": ",".join(map(str, (p for p in block[_WORKER_PORTS_FROM:] if not _is_held(p)))),
        }
        for i, name in enumerate(_NAMED_PORTS):
            if self.head_address is None or name not in _HEAD_ONLY:
                options[name] = self.ports + i
        start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        if self.head_address is None:
            start.append("--head")
            options |= {"include-dashboard": "true", "dashboard-host": self.dashboard_host}
            options["temp-dir"] = self.folder / RAYS
        else:
            options["address"] = self.head_address
        return [*start, *(f"--{name}={value}" for name, value in options.items())]

    @property
    def ended(self) -> bool:
        """Whether Ray no longer runs."""
        return self.process is not None and self.process.poll() is not None

    def try_again(self) -> bool:
        """Start Ray once more where it has ended, as it does after 30 s on a busy file system; False: no third time."""
        if self.starts > 1:
            return False
        tell(f"{self.last_words()}; tried once more", err=True)
        self._kill()
        self.start(self.head_address)
        return True

    def alive(self, token: str) -> list[str]:
        """Return the addresses of the nodes that the head's Ray has, by its dashboard; none before that answers."""
        host = self.dashboard_host.replace("0.0.0.0", "127.0.0.1")
        dashboard = HTTPConnection(host, self.ports + _NAMED_PORTS.index("dashboard-port"), timeout=5)
        try:  # not by a driver, which takes 5 s to start
            dashboard.request("GET", "/api/v0/nodes", headers={"Authorization": f"Bearer {token}"})
            nodes = json.load(dashboard.getresponse())["data"]["result"]["result"]
            return [node["node_ip"] for node in nodes if node["state"] == "ALIVE"]
        except (OSError, HTTPException, ValueError, LookupError, TypeError):
            return []
        finally:
            dashboard.close()

    def last_words(self) -> str:
        """Return how Ray ended, with the last line that it printed."""
        assert self.process is not None
        lines = re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text(errors="replace")).splitlines()
        said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        return f"Ray ended on {self.placement.address} (exit code {self.process.returncode}): {said[:300]}"

    def stop(self, keep_logs: Path | None = None) -> None:
        """End Ray's processes of this node, and no others; remove its files, after copying its logs if asked."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()  # ray start --block ends what it started
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self._kill()
        for hold in self.holds:
            hold.close()
        if keep_logs is not None:
            copy_logs([self.log, *self.folder.glob(LOGS)], keep_logs)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _kill(self) -> None:
        assert self.process is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # the session that start_new_session made
        self.process.wait()


def metric_ports(ports: int) -> dict[str, str]:
    """Return the variables by which a head's dashboard and autoscaler take ports of the block for their metrics."""
    return {name: str(ports + len(_NAMED_PORTS) + i) for i, name in enumerate(_METRIC_PORTS)}


def block_size(cpus: int) -> int:
    """Return the ports that a node's block has: a worker of each CPU needs one, and Ray leaves CPUs idle without."""
    lacking = cpus + _MORE_WORKERS - (_STEP - _WORKER_PORTS_FROM)  # in the first hundred
    return _STEP * (1 + ceil(lacking / (_STEP - 1)))


def _is_held(port: int) -> bool:
    return port % _STEP == _HELD_PORT


def free_ports(placement: Placement) -> tuple[int, list[socket.socket]]:
    """Find a free block of ports on this node, from a place of the job's own on, so that jobs seldom meet.

    Returns its first port, and sockets that hold the block for as long as they are open: Ray needs seconds to take
    ports, those of workers longer, and another launcher may look meanwhile.

    Raises UserError: every block has a port in use.
    """
    size = block_size(placement.cpus)
    firsts = range(_FIRST_PORT, _END - size + 1, _STEP)
    start = zlib.crc32(f"{placement.job} {placement.rank}".encode())
    for i in range(len(firsts)):
        first = firsts[(start + i) % len(firsts)]
        block, holds = range(first, first + size), list[socket.socket]()
        with suppress(OSError):
            for port in filter(_is_held, block):
                holds.append(socket.socket())
                holds[-1].bind(("", port))
            if all(_is_free(placement.address, port) for port in block if not _is_held(port)):
                return first, holds
        for hold in holds:
            hold.close()
    raise UserError(f"no free block of {size} ports from {_FIRST_PORT} to {_END} at {placement.address}")


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((address, port))
        except OSError:
            return False
    return True
