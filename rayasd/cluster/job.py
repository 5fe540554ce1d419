"""A command as a job of Ray: its name, and under ``rayasd launch`` its log, where people look for them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import BinaryIO

from rayasd.cluster.daemon import RayNode
from rayasd.cluster.folder import RAYS
from rayasd.files import no_links
from rayasd.host import end_with_parent

_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # by which Ray's own supervisor of jobs tells a driver what it is
_NODES = "RAYASD_NODES_FILE"  # file that exists once the nodes of a launch have come together
_END_SECONDS = 20.0  # for a command to end by itself where nodes do not come together
_START_MS = int(time.time() * 1000)
FOLDER = "RAYASD_FOLDER"
"""In which a submitted command starts: not said in the command, so that Ray's list begins with what matters."""


def name_of(command: Sequence[str]) -> str:
    """Name a command of rayasd for people: ``sweep runs/night``."""
    words = " ".join(command).replace("--run-dir=", "--run-dir ").split()
    at = words.index("--run-dir") + 1 if "--run-dir" in words else 1
    run = next((word for word in words[at : at + 1] if not word.startswith("-")), "")
    return f"{words[0]} {run or 'runs/default' * (words[0] == 'sweep')}".strip()


class Command:
    """The command that a launch runs on its head, at once: it imports and decodes while the nodes come together.

    It is our own child, so that signals and exit codes are as they are. What it prints also goes into a log for Ray's
    dashboard, unless a person watches it in a terminal.
    """

    def __init__(self, command: Sequence[str], node: RayNode, address: str, nodes: Path) -> None:
        self._id, self._node = f"{command[0]}-{node.placement.job}", node
        self._log = node.folder / "driver.log"
        config = {"metadata": {"job_submission_id": self._id, "job_name": name_of(command)}}
        pipe = None if sys.stdout.isatty() and not node.placement.by_mpi else subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rayasd", *command], stdout=pipe, stderr=pipe, preexec_fn=end_with_parent,
            env={**node.environment, "RAY_ADDRESS": address, _NODES: str(nodes), _CONFIG: json.dumps(config)},
        )  # fmt: skip
        streams = ((self.process.stdout, sys.stdout.buffer), (self.process.stderr, sys.stderr.buffer))
        self._copies = [Thread(target=self._copy, args=each, daemon=True) for each in streams if each[0]]
        for copy in self._copies:
            copy.start()

    def show(self) -> None:
        """Put the log where Ray's dashboard looks for that of a job."""
        with suppress(OSError):
            os.link(self._log, self._node.folder / RAYS / f"session_latest/logs/job-driver-{self._id}.log")

    def end(self) -> None:
        """Interrupt the command if it still runs, and wait until its last words are copied."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for copy in self._copies:
            copy.join(5)

    def _copy(self, source: BinaryIO, target: BinaryIO) -> None:
        files = [target]
        with suppress(OSError):
            files.append(open(self._log, "ab", buffering=0, opener=no_links))  # noqa: SIM115
        while text := source.read1(1 << 16):  # type: ignore[attr-defined]
            for file in files:
                with suppress(OSError):  # a pipe that nobody reads, a full disk: the command must not wait for us
                    file.write(text)
                    file.flush()


@contextmanager
def described(name: str) -> Iterator[None]:
    """Let a driver that connects to Ray within the block have this name in Ray's list, unless it was given one.

    Under ``rayasd launch``, first wait until all nodes have come together.
    """
    import ray  # noqa: F401 - takes seconds, while nodes come

    while _NODES in os.environ and not Path(os.environ[_NODES]).exists():
        time.sleep(0.1)  # the launch ends us if they do not
    given = os.environ.get(_CONFIG)
    os.environ[_CONFIG] = given or json.dumps({"metadata": {"job_name": name}})
    try:
        yield
        tell_dashboard("")
    finally:
        if given is None:
            os.environ.pop(_CONFIG, None)


def launched() -> bool:
    """Whether we are the command of ``rayasd launch``, on a Ray with our settings."""
    return _NODES in os.environ


def leave_stopped() -> None:
    """Let Ray's list call a submitted job stopped, which stops; by its exit code, it would have failed."""
    job = json.loads(os.environ.get(_CONFIG, "{}")).get("metadata", {}).get("job_submission_id")
    if job and not launched():
        from ray.job_submission import JobSubmissionClient

        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Ray's way to stop a job, which ends already
        with suppress(Exception):
            JobSubmissionClient(os.environ["RAY_ADDRESS"]).stop_job(job)


def tell_dashboard(message: str) -> None:
    """Tell Ray of the driver of a launch what its supervisor of jobs would: that it runs, where, and how far it is."""
    metadata = json.loads(os.environ.get(_CONFIG, "{}")).get("metadata", {})
    if not launched() or "job_submission_id" not in metadata:
        return
    with suppress(Exception):  # Ray's own business: without it, a driver is listed without a log
        import ray
        from ray._private.ray_constants import KV_NAMESPACE_JOB
        from ray.dashboard.modules.job.common import JobInfo, JobInfoStorageClient, JobStatus
        from ray.experimental.internal_kv import _internal_kv_put

        job = JobInfo(
            status=JobStatus.RUNNING, message=message or None, metadata=metadata, start_time=_START_MS,
            entrypoint=" ".join(["rayasd", *sys.argv[1:]]), driver_node_id=ray.get_runtime_context().get_node_id(),
        )  # fmt: skip
        key = JobInfoStorageClient.JOB_DATA_KEY.format(job_id=metadata["job_submission_id"])
        _internal_kv_put(key, json.dumps(job.to_json()), namespace=KV_NAMESPACE_JOB)
