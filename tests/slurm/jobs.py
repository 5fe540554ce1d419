"""Batch jobs on the test cluster: small sweeps that last as long as a fault needs, and what they leave behind."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Event, Thread

from tests.conftest import small_sweep
from tests.slurm.hosts import Hosts, wait_for

ROOT = Path(__file__).parents[2]
LOCAL_TEMP = "/tmp/ray"
"""A folder that each host has for itself."""
TWO_HOSTS = ("--nodes=2", "--cpus-per-task=2")
THREE_HOSTS = ("--nodes=3", "--exclusive", "--partition=mixed", "--mem=0")
SHORT = ("--machines", "fan,pump", "--set", "exposure.epochs=10")
"""Two units, one for each host."""
FAULTY = ("--machines", "fan,pump", "--set", "exposure.epochs=100")
"""Two units that train long enough for a test to step in."""


def sweep_words(tree: Path, run: Path, *more: object) -> list[str]:
    """Arguments of ``rayasd sweep``, without its executor."""
    words = [str(word) for word in small_sweep(tree, run, *more)]
    place = words.index("--executor")
    return [*words[1:place], *words[place + 2 :]]


@dataclass
class Job:
    """A batch job."""

    hosts: Hosts
    number: str
    folder: Path

    @property
    def log(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob(f"rayasd-{self.number}*")))

    def facts(self) -> dict[str, str]:
        """Return what Slurm knows of it."""
        shown = self.hosts.run("scontrol", "show", "job", self.number).stdout
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    def state(self) -> str:
        return self.facts().get("JobState", "UNKNOWN")

    def wait(self, seconds: float = 240, *states: str) -> str:
        """Wait until it is in one of the states, by default until it has ended; returns its state."""
        states = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        try:
            wait_for(lambda: self.state() in states, seconds)
        except TimeoutError:
            raise TimeoutError(f"job {self.number} is {self.state()} after {seconds} s; log:\n{self.log}") from None
        return self.state()


def submit(hosts: Hosts, folder: Path, cache: Path, script: str, *words: object, options: tuple[str, ...] = ()) -> Job:
    """Submit one of our scripts."""
    done = hosts.run(
        "sbatch", "--parsable", *options, ROOT / "slurm" / script, *words, cwd=folder,
        RAYASD_TMP=LOCAL_TEMP, RAYASD_CACHE=str(cache), RAYASD_VENV=sys.prefix,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return Job(hosts, done.stdout.strip().splitlines()[-1], folder)


def events(run: Path, part: str = "") -> list[dict]:
    """Read the events of a run, or of the driver of a part of it, all that exist by now."""
    path = run / f"events{part}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def moment(event: dict) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


@dataclass(frozen=True)
class Training:
    """A process that trains a machine's unit, by its number on its host."""

    host: str
    pid: int


def trainings(run: Path, variant: str = "both") -> dict[str, Training]:
    """Return what trains each machine, with a checkpoint behind it, now or when it was killed."""
    found = {}
    for path in run.glob(f"models/{variant}/*/seed=0/progress.json"):
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if record["done"] >= 3:
            found[path.parts[-3]] = Training(record["host"], record["pid"])
    return found


@contextmanager
def slow_motion(hosts: Hosts, run: Path, *before: dict[str, Training]) -> Iterator[dict[str, Training]]:
    """Let both units, one on each host, train at a twentieth of their pace while this lasts.

    What happens meanwhile, happens in the middle of both trainings, however fast the machine is or however busy.
    Ray takes a process that is frozen for good for lost, so each goes on for a moment each second.

    Args:
        hosts: where they train.
        run: whose units they are; each is slowed down as soon as it has a checkpoint.
        before: trainings that are over; their files may still be there.

    """
    slow: dict[str, Training] = {}
    processes: list[int] = []
    ended = Event()

    def signal_all(number: signal.Signals) -> None:
        for process in list(processes):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, number)

    def pulse() -> None:
        while not ended.wait(0.05):
            signal_all(signal.SIGSTOP)
            ended.wait(1)
            signal_all(signal.SIGCONT)

    def both() -> bool:
        for machine, training in trainings(run).items():
            if machine not in slow and training not in [earlier.get(machine) for earlier in before]:
                with suppress(ProcessLookupError):
                    processes.append(hosts.open_process(training.host, training.pid))
                    slow[machine] = training
        return len(slow) == 2

    thread = Thread(target=pulse)
    thread.start()
    try:
        wait_for(both, 240)
        assert {training.host for training in slow.values()} == {"h1", "h2"}
        yield slow
    finally:
        ended.set()
        thread.join()
        for process in processes:
            os.close(process)


def results(run: Path) -> dict[str, bytes]:
    """Return what a run found: weights and scores by name, and its leaderboard."""
    files = [
        *run.glob("models/*/*/*/model.safetensors"),
        *run.glob("scores/**/part-0.parquet"),
        run / "leaderboard.csv",
    ]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def left_behind(hosts: Hosts, *numbers: int) -> list[str]:
    """List what a job has left on these hosts: processes, listening ports, shared memory, temporary folders."""
    look = (
        "ps -eo args | grep -E 'ray|rayasd' | grep -v -E 'grep|ps -eo|pytest'; "
        "ss -Hltn 'sport >= 20000 and sport < 32000'; "
        f"ls -d {LOCAL_TEMP}/* /dev/shm/*ray* /dev/shm/*plasma* 2>/dev/null; true"
    )
    return [
        f"h{k}: {line}"
        for k in numbers or (1, 2, 3)
        for line in hosts.node(k, "sh", "-c", look).stdout.splitlines()
        if line.strip()
    ]


def wait_until_clean(hosts: Hosts, *numbers: int, seconds: float = 30) -> float:
    """Wait until nothing is left; returns the seconds that it took."""
    began = time.monotonic()
    while (left := left_behind(hosts, *numbers)) and time.monotonic() - began < seconds:
        time.sleep(0.5)
    assert left == []
    return time.monotonic() - began
