"""Units on a Ray cluster: training and embedding as tasks, inlier models in a pool of actors."""

import os
import re
import secrets
import socket
from pathlib import Path
from typing import Any

from rayasd.errors import UserError
from rayasd.sweep.executors import Resources
from rayasd.sweep.worker import Outcome, do_unit
from rayasd.unit import UnitSpec

OBJECT_STORE_BYTES = 100_000_000
"""Specs and outcomes are small, everything large goes through files: Ray's smallest store is enough."""

_NO_GPU_NO_SIGHT = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
"""A task without GPUs must not see any; Ray hides them only if told so."""


class RayExecutor:
    """Drives a Ray cluster: a standing one by address, else one of this host's own that ends with the driver."""

    def __init__(self, address: str | None, token_file: Path, num_cpus: int | None = None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        address = address or os.environ.get("RAY_ADDRESS")
        own = not address or address == "local"
        self._token = _authenticate(token_file) if own else None
        if own:
            os.environ.update(_NO_GPU_NO_SIGHT)  # workers of our own cluster inherit it
        if not own:
            _check_reachable(str(address))
        import ray

        self._ray = ray
        try:
            context = ray.init(
                address="local" if own else address,  # none would join whatever cluster somebody started on this host
                num_cpus=(num_cpus or len(os.sched_getaffinity(0))) if own else None,
                object_store_memory=OBJECT_STORE_BYTES if own else None,
                include_dashboard=True if own else None,
                dashboard_host="127.0.0.1" if own else None,
                log_to_driver=False,
                logging_level="ERROR",
                namespace="rayasd",
                runtime_env=None if own else {"env_vars": _NO_GPU_NO_SIGHT},
            )
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
            where = "a Ray on this host" if own else f"the Ray cluster at {address}"
            raise UserError(f"cannot start or reach {where}: {' '.join(str(error).split())[:300]}") from None
        self._where = "Ray on this host" if own else f"Ray cluster {address}"
        dashboard = context.dashboard_url
        self._dashboard = f", dashboard http://{dashboard}" if dashboard else ""
        if dashboard and self._token:
            self._dashboard += f" (token in {self._token})"
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.nodes = [Resources(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes]
        self._running: dict[Any, tuple[UnitSpec, Any]] = {}
        self._idle_actors: list[Any] = []
        # Retries are the driver's alone: Ray would repeat a task killed for memory without end.
        self._task = ray.remote(max_retries=0)(do_unit)
        self._actor = ray.remote(num_cpus=0, max_restarts=0, scheduling_strategy="SPREAD")(InlierModels)

    def describe(self) -> str:
        """Say where units run and where to watch them."""
        total = Resources(sum(node.cpus for node in self.nodes), sum(node.gpus for node in self.nodes))
        nodes = "" if len(self.nodes) == 1 else f" on {len(self.nodes)} nodes"
        return f"{self._where}: {total}{nodes}{self._dashboard}"

    def submit(self, spec: UnitSpec, resources: Resources) -> None:
        """Start a unit; its name is what the dashboard shows."""
        actor = None
        if spec.unit.stage == "detect":
            # Actors hold no CPU for life (a waiting one would starve the tasks): the driver counts what runs in them.
            actor = self._idle_actors.pop() if self._idle_actors else self._actor.remote()
            reference = actor.detect.options(name=str(spec.unit)).remote(spec)
        else:
            options = {"name": str(spec.unit), "num_cpus": resources.cpus, "num_gpus": resources.gpus}
            reference = self._task.options(**options).remote(spec)
        self._running[reference] = (spec, actor)

    def wait(self, timeout: float) -> list[Outcome]:
        """Collect what finished; a lost worker or node is an outcome of the unit that it took with it."""
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout)
        outcomes = []
        for reference in ready:
            spec, actor = self._running.pop(reference)
            try:
                outcomes.append(self._ray.get(reference))
            except self._ray.exceptions.RayError as error:
                first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
                outcomes.append(Outcome(spec.unit, f"its Ray worker was lost: {first_line[:300]}", str(error)))
                if actor is not None:  # whatever ended one (its node, memory) may have ended the idle ones too
                    self._idle_actors.clear()
                    actor = None
            if actor is not None:
                self._idle_actors.append(actor)
        return outcomes

    def close(self) -> None:
        """Cancel what still runs and leave the cluster; our own ends with us."""
        for reference, (_, actor) in self._running.items():
            if actor is None:
                self._ray.cancel(reference, force=True)
        self._running.clear()
        self._ray.shutdown()
        if self._token is not None:
            self._token.unlink(missing_ok=True)


class InlierModels:
    """Actor that fits and applies the inlier models of one unit after another."""

    def detect(self, spec: UnitSpec) -> Outcome:
        """Do a detect unit."""
        return do_unit(spec)


def _check_reachable(address: str) -> None:
    """Refuse an address where nobody listens: Ray would try for two minutes.

    Raises:
        UserError: nothing answers there.

    """
    match = re.fullmatch(r"(?:ray://)?(.+):(\d+)", address)
    if match is None:
        return  # auto, or a name that Ray resolves
    try:
        socket.create_connection((match[1], int(match[2])), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster answers at {address}: {error}") from None


def _authenticate(token_file: Path) -> Path | None:
    """Protect our own cluster by a token of this run unless the environment already says how; returns its file.

    Without one, whoever reaches its ports (any user of this host) runs code as us.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return None
    descriptor = os.open(token_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file)
    return token_file
