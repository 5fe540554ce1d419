"""Units on a Ray cluster: training and embedding as tasks, inlier models in a pool of actors."""

import atexit
import getpass
import os
import secrets
import shutil
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rayasd.cluster.folder import LOGS, RAYS, copy_logs, private_folder, root_of_own
from rayasd.cluster.job import described, launched
from rayasd.cluster.nodes import check_nodes
from rayasd.cluster.settings import NO_GPU_NO_SIGHT, OBJECT_STORE_BYTES, SETTINGS, join, write_token
from rayasd.errors import Interrupted, UserError
from rayasd.files import read_record
from rayasd.host import usable_cpus, why_silent
from rayasd.stages import STAGES
from rayasd.sweep.executors import Resources
from rayasd.sweep.worker import Outcome, do_unit
from rayasd.unit import Unit, UnitSpec

_LOOK_SECONDS = 5.0  # between questions which nodes are up
_HEAD_SECONDS = 30.0  # that the head may be silent; after 60, Ray ends this process without a word of ours
_HOST_PAUSE_SECONDS = 20.0  # after a host was lost: until then, Ray might send the unit there again
_MOST_NAMES = 2000
_METRICS = "prom_metrics_service_discovery.json"  # Ray's list of ports, where its documentation says
_SECRET = secrets.token_hex(32)  # one a process: Ray keeps the first that it reads
_AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")  # which Ray reads when it is imported
_MEMORY_PAUSE_SECONDS = 30.0  # after a worker was killed for memory: others may have ended by then


class RayExecutor:
    """Drives a Ray cluster: a standing one by address, else one of this host's own that ends with the driver."""

    def __init__(
        self, address: str | None, token_file: Path, *, name: str = "rayasd", dashboard_host: str = "127.0.0.1"
    ) -> None:
        """Connect, or start a Ray of our own.

        ``address``: HOST:PORT; None: as the environment says, else our own. The others are of our own.

        Raises UserError: nobody answers, Ray does not start, or a node has other software.
        """
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        self._own = own = address == "local"  # said, since Ray would join whatever somebody started on this host
        self._variables = {name: os.environ.get(name) for name in _AUTHENTICATION}
        self._folder = private_folder(root_of_own()) if own else None
        self._token = _authenticate(token_file) if own else None
        if self._folder is not None:
            atexit.register(shutil.rmtree, self._folder, ignore_errors=True)  # if interrupted before close
            os.environ.update(SETTINGS)  # workers of our own cluster inherit it
            where = "a Ray on this host"
            options: dict[str, Any] = {
                "num_cpus": usable_cpus(), "object_store_memory": OBJECT_STORE_BYTES,
                "include_dashboard": True, "dashboard_host": dashboard_host, "_temp_dir": str(self._folder / RAYS),
            }  # fmt: skip
        else:
            # under a launch, all have these settings: so the workers that Ray has started already can be used
            where = f"the Ray cluster at {address}"
            options = {} if launched() else {"runtime_env": {"env_vars": NO_GPU_NO_SIGHT}}
        try:
            with described(name):
                context = join(address, where, namespace="rayasd", **options)
        except BaseException:
            self._forget_token()
            raise
        import ray

        self._ray = ray
        self._where = "Ray on this host" if own else f"Ray cluster {address}"
        self._job = name
        self.dashboard = _dashboard(context)
        """Address, the command of the tunnel to it, and files: its token, the ports of metrics; as far as there are."""
        head, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        self._head = head.strip("[]"), int(port)
        self._sees_head = not address.startswith("ray://")  # whose client has a port of its own
        self._head_silent = 0.0
        """Since when it has not answered."""
        self._logs, self._lost_any = token_file.with_name("ray-logs"), False
        self._running: dict[Any, tuple[UnitSpec, Any]] = {}
        self._names: set[str] = set()
        self._idle: list[Any] = []
        """Actors without a unit, kept since a new one takes seconds. On a cluster that others use too, they hold their
        CPUs until we need these; on our own they hold none, since the driver counts."""
        # Retries are the driver's alone: Ray would repeat a task killed for memory without end.
        self._task = ray.remote(max_retries=0, scheduling_strategy="SPREAD")(_do)
        self._actor = ray.remote(max_restarts=0, scheduling_strategy="SPREAD")(InlierModels)
        self._look_at_nodes()
        try:
            self._odd = [] if own else check_nodes(ray, [node for node in self._up if node["Resources"].get("CPU")])
        except UserError:
            ray.shutdown()
            raise

    @property
    def nodes(self) -> list[Resources]:
        """Resources of the nodes that are up, as of a few seconds ago."""
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._look_at_nodes()
        return self._nodes

    def _look_at_nodes(self) -> None:
        self._looked = time.monotonic()
        if silent := self._sees_head and why_silent(*self._head, 2.0):
            self._head_silent = self._head_silent or self._looked
            if time.monotonic() - self._head_silent > _HEAD_SECONDS:
                raise Interrupted(f"the head of the {self._where} does not answer ({silent})")
            self._nodes = []  # nothing starts meanwhile: Ray would wait for it
            return
        self._head_silent = 0.0
        self._up = [node for node in self._ray.nodes() if node["Alive"]]
        if self._own and not self._up:
            raise Interrupted(f"the {self._where} has ended")
        amounts = [node["Resources"] for node in self._up]
        self._nodes = [Resources(amount.get("CPU", 0.0), amount.get("GPU", 0.0)) for amount in amounts]

    def describe(self) -> list[str]:
        """Return where units run, where to watch them, and what is odd about the nodes."""
        total = Resources(sum(node.cpus for node in self.nodes), sum(node.gpus for node in self.nodes))
        nodes = "" if len(self.nodes) == 1 else f" on {len(self.nodes)} nodes"
        lines, found = [f"{self._where}: {total}{nodes}"], self.dashboard
        if found:
            tunnel = f", from elsewhere by {found['tunnel']}" if "tunnel" in found else ""
            token = f"; its token is in {found['token']}" if "token" in found else ""
            lines.append(f"dashboard {found['address']}{tunnel}{token}")
        if "metrics" in found:
            lines.append(f"Prometheus finds metrics by {found['metrics']}")
        return [*lines, *self._odd]

    def submit(self, spec: UnitSpec, resources: Resources) -> None:
        """Start a unit; its name is what the dashboard shows."""
        actor = None
        if not STAGES[spec.unit.stage].uses_torch:  # starts at once, in a process that has started before
            cpus = 0 if self._own else resources.cpus
            actor = self._idle.pop() if self._idle else self._actor.options(num_cpus=cpus).remote(self._job)
            reference = actor.detect.options(name=self.name(spec.unit)).remote(spec)
        else:
            self._make_room(resources)
            options = {"name": self.name(spec.unit), "num_cpus": resources.cpus, "num_gpus": resources.gpus}
            reference = self._task.options(**options).remote(spec)
        self._running[reference] = (spec, actor)

    def name(self, unit: Unit) -> str:
        """Name a unit for Ray, which keeps 10 kB of each name for good: of many units, without seeds."""
        if len(self._names) < _MOST_NAMES:
            self._names.add(str(unit))
        return str(unit) if str(unit) in self._names else f"{unit.stage} {unit.machine} {unit.variant}"

    def wait(self, timeout: float) -> list[Outcome]:
        """Collect what finished; a lost worker or node is an outcome of the unit that it took with it."""
        if not self._running:
            time.sleep(timeout)
            return []
        ready, others = self._ray.wait(list(self._running), num_returns=1, timeout=timeout)
        if ready and others:
            ready += self._ray.wait(others, num_returns=len(others), timeout=0)[0]
        outcomes = []
        for reference in ready:
            spec, actor = self._running.pop(reference)
            try:
                outcomes.append(self._ray.get(reference))
                if actor is not None:
                    self._idle.append(actor)
            except self._ray.exceptions.RayError as error:
                outcomes.append(self._lost(spec, error))
                if actor is not None:  # whatever ended one (its node, memory) may have ended the idle ones too
                    self._idle.clear()
        return outcomes

    def cancel(self, unit: Unit) -> None:
        """End the unit's worker: by Ray's own means, and by a signal on its host if it does not listen to those."""
        reference, (spec, actor) = next((r, s) for r, s in self._running.items() if s[0].unit == unit)
        del self._running[reference]
        worker = read_record(spec.run.progress(unit))
        if actor is None:
            self._ray.cancel(reference, force=True)
        else:
            self._ray.kill(actor)
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        for node in self._up:
            if node["NodeManagerHostname"] == worker.get("host"):
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                killer = self._ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_kill_worker)
                killer.options(name=f"end {unit}").remote(worker["host"], worker["pid"])

    def close(self) -> None:
        """Cancel what still runs and leave the cluster; our own ends with us."""
        if not self._head_silent:
            for reference, (_, actor) in self._running.items():
                if actor is None:
                    self._ray.cancel(reference, force=True)
        self._running.clear()
        self._ray.shutdown()
        if self._folder is not None:
            if self._lost_any:  # a worker that crashed may have said why, to Ray alone
                copy_logs(self._folder.glob(LOGS), self._logs)
            shutil.rmtree(self._folder, ignore_errors=True)
        self._forget_token()

    def _forget_token(self) -> None:
        if self._token is not None:
            self._token.unlink(missing_ok=True)
            for name, value in self._variables.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    def _make_room(self, needed: Resources) -> None:
        """End the idle actors where a task may need their CPUs; any of them may be on the one node that has room."""
        if self._own:
            return
        slots = sum(int(node.cpus / needed.cpus + 1e-9) for node in self.nodes)
        if needed.gpus or len(self._running) + len(self._idle) + 1 > slots:
            for actor in self._idle:
                self._ray.kill(actor)
            self._idle.clear()

    def _lost(self, spec: UnitSpec, error: Exception) -> Outcome:
        """Return how a unit lost its worker."""
        self._lost_any = True
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        kinds = self._ray.exceptions
        gone = self._host_is_gone(spec)  # Ray itself takes 15 s or more to know
        return Outcome(
            spec.unit,
            f"its Ray worker was lost: {first_line[:300]}",
            str(error),
            host_lost=gone or isinstance(error, (kinds.NodeDiedError, kinds.ActorUnavailableError)),
            pause_seconds=(
                _MEMORY_PAUSE_SECONDS if isinstance(error, kinds.OutOfMemoryError) else _HOST_PAUSE_SECONDS * gone
            ),
        )

    def _host_is_gone(self, spec: UnitSpec) -> bool:
        """Whether the unit's node has left or does not answer; before its first sign of life, any node may be it."""
        host = read_record(spec.run.progress(spec.unit)).get("host")
        nodes = [node for node in self._up if host in (None, node["NodeManagerHostname"])]
        for node in nodes:
            if "answers" not in node:  # asked once per look at the nodes
                node["answers"] = not why_silent(node["NodeManagerAddress"], node["NodeManagerPort"], 2.0)
        return not nodes or not all(node["answers"] for node in nodes)


class InlierModels:
    """Actor that fits and applies the inlier models of one unit after another."""

    def __init__(self, job: str) -> None:
        self.job = job

    def __repr__(self) -> str:
        """Name it for the dashboard."""
        return f"inlier models, {self.job}"

    def detect(self, spec: UnitSpec) -> Outcome:
        """Do a detect unit."""
        return _do(spec)


def _do(spec: UnitSpec) -> Outcome:
    """Do a unit; its worker's title in the dashboard's list of nodes, and in ps and top, says how far it is."""
    return do_unit(spec, show=_entitle)


def _entitle(text: str) -> None:
    with suppress(Exception):  # Ray's own function, since it sets the title of a task; nothing depends on it
        from ray._raylet import setproctitle  # type: ignore[attr-defined]

        setproctitle(f"ray::{text}")


def _kill_worker(host: str, pid: int) -> None:
    """Kill a Ray worker of this host, if it is one."""
    with suppress(OSError):
        if socket.gethostname() == host and b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)


def _dashboard(context: Any) -> dict[str, str]:
    """Describe where the dashboard of a Ray is, and how to see it from another host."""
    if not (url := context.dashboard_url):
        return {}
    host, _, port = url.rpartition(":")
    found = {"address": f"http://{url}"}
    if host in ("127.0.0.1", "localhost"):
        at_host = socket.gethostname()
        with suppress(KeyError, OSError):  # a container's user may be a number without a name
            at_host = f"{getpass.getuser()}@{at_host}"
        found["tunnel"] = f"ssh -N -L {port}:{url} {at_host}"
    if token := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        found["token"] = token
    if session := getattr(context, "address_info", {}).get("session_dir"):  # not where Ray's client connects
        found["metrics"] = str(Path(session).with_name(_METRICS))
    return found


def _authenticate(token_file: Path) -> Path | None:
    """Protect our own cluster by a token of this run, unless the user has it ask for his own; returns its file."""
    if os.environ.get("RAY_AUTH_MODE") == "token":
        return None
    write_token(token_file, _SECRET)
    os.environ.pop("RAY_AUTH_TOKEN", None)  # Ray would read it first
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file)
    return token_file
