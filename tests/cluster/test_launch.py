"""A launcher's part without a Ray: what it reads in the meeting's folder, and what signals do to it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest

from rayasd.cluster import launch
from rayasd.cluster.daemon import RayNode
from rayasd.cluster.folder import private_folder
from rayasd.cluster.job import Command, name_of
from rayasd.cluster.launch import Interruption
from rayasd.cluster.meeting import Meeting, leave_mark, read
from rayasd.cluster.placement import Placement
from rayasd.errors import UserError
from rayasd.files import write_json

WORKER = Placement(job="j", rank=1, size=2, address="127.0.0.1", cpus=1, gpus=0)


@dataclass
class FakeNode:
    """A node whose Ray runs, or ends as soon as it is started."""

    placement: Placement
    ended: bool = False
    up: Sequence[str] = ()
    starts: int = 0

    def start(self, address: str | None) -> None:
        self.starts += 1

    def try_again(self) -> bool:
        self.starts += 1
        return self.starts <= 2

    def last_words(self) -> str:
        return f"Ray ended on {self.placement.address}"

    def alive(self, token: str) -> Sequence[str]:
        return self.up


class Clock:
    """Time that passes only while somebody sleeps; then what is due happens."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due: dict[float, Callable[[], object]] = {}

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for moment in [moment for moment in self.due if moment <= self.now]:
            self.due.pop(moment)()
        assert self.now < 600


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(launch, "time", made)
    return made


@pytest.fixture
def meeting(tmp_path: Path) -> Meeting:
    """Return a meeting whose nodes have come together."""
    made = Meeting(tmp_path / "launch-j")
    made.root.mkdir()
    write_json(made.head, {"address": "127.0.0.1:1"})
    write_json(made.complete, {})
    return made


@pytest.fixture
def handlers():
    """Put back how this process takes signals."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers:  # nohup and the like leave some ignored
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def work(meeting: Meeting) -> int:
    node = FakeNode(WORKER)
    return launch._worker(node, meeting, "127.0.0.1:1", launch._catch_signals(WORKER))  # type: ignore[arg-type]


def test_a_worker_stays_after_usr1_for_as_long_as_the_epochs_last(meeting: Meeting, clock: Clock, handlers: None):
    clock.due[1] = lambda: os.kill(os.getpid(), signal.SIGUSR1)
    clock.due[90] = lambda: write_json(meeting.end, {"code": 75})
    assert work(meeting) == 0
    assert clock.now >= 90


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_worker_that_is_meant_alone_leaves(meeting: Meeting, clock: Clock, handlers: None, number: signal.Signals):
    clock.due[1] = lambda: os.kill(os.getpid(), number)
    with pytest.raises(Interruption):
        work(meeting)
    assert 20 < clock.now < 23
    assert read(meeting.node(1)) == {"left": True}


def test_the_first_trouble_is_what_all_are_told(meeting: Meeting):
    assert meeting.trouble() is None
    meeting.report("no ports")
    meeting.report("another one's, later")
    assert meeting.trouble() == "no ports"
    assert [path.name for path in meeting.root.glob("*trouble*")] == ["trouble.json"]


def test_a_worker_ends_with_anothers_trouble_and_looks_for_it_seldom_once_all_are_together(
    meeting: Meeting, clock: Clock, handlers: None, monkeypatch: pytest.MonkeyPatch
):
    looks: list[float] = []

    def trouble(self: Meeting, look: Callable[[Meeting], str | None] = Meeting.trouble) -> str | None:
        looks.append(clock.now)
        return look(self)

    monkeypatch.setattr(Meeting, "trouble", trouble)
    meeting.complete.unlink()
    clock.due[10] = lambda: write_json(meeting.complete, {})
    clock.due[100] = lambda: meeting.report("no disk")
    with pytest.raises(UserError, match="no disk"):
        work(meeting)
    assert clock.now < 106
    before = [look for look in looks if look < 10]
    assert len(before) >= 20  # at each turn, since nobody knows yet whether all come
    assert len(looks) - len(before) <= 21  # every 5 s


def test_trouble_before_the_head_has_come_is_told_once_it_has(
    tmp_path: Path, clock: Clock, handlers: None, monkeypatch: pytest.MonkeyPatch
):
    def none(*_: object) -> tuple[int, object]:
        raise UserError("no free block")

    meeting = Meeting(tmp_path / "launch-j")
    clock.due[5] = lambda: (meeting.root.mkdir(), write_json(meeting.head, {"address": "127.0.0.1:1", "mark": "5f"}))
    monkeypatch.setattr(launch, "free_ports", none)
    with pytest.raises(UserError, match="no free block"):
        launch.launch(WORKER, ["report"], {}, folder=tmp_path, temp_root=tmp_path, wait_seconds=10)
    assert meeting.trouble() == "no free block"


def test_a_head_that_does_not_come_is_lost_and_one_that_fails_tells_why(
    tmp_path: Path, clock: Clock, handlers: None, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def none(*_: object) -> tuple[int, object]:
        raise UserError("no free block")

    def join(placement: Placement) -> int:
        return launch.launch(placement, ["report"], {}, folder=tmp_path, temp_root=tmp_path, wait_seconds=60)

    monkeypatch.setattr(launch, "free_ports", none)
    assert join(WORKER) == launch.EXIT_HEAD_LOST
    assert capsys.readouterr().err == f"rank 0 did not come within 60 s: nothing in {tmp_path / 'launch-j'}\n"
    told = []
    clock.due[clock.now + 5] = lambda: told.append(Meeting(tmp_path / "launch-j").trouble())
    with pytest.raises(UserError, match="no free block"):
        join(replace(WORKER, rank=0))
    assert told == ["no free block"]  # for launchers that come a little later


def test_a_launcher_removes_what_its_killed_predecessors_left(
    tmp_path: Path, clock: Clock, handlers: None, monkeypatch: pytest.MonkeyPatch
):
    def none(*_: object) -> tuple[int, object]:
        raise UserError("no free block")

    make = "import sys, pathlib; from rayasd.cluster.folder import *\n" \
           "for job in sys.argv[2:]: print(private_folder(pathlib.Path(sys.argv[1]), job))"  # fmt: skip
    names = "7-0-0", "7-mpi-1", "7-1-2", "77-0-0"
    meetings = [tmp_path / f"launch-{name}" for name in names]
    for folder in meetings:
        folder.mkdir()
    monkeypatch.setattr(launch, "free_ports", none)
    placement = replace(WORKER, job="7-2-2", rank=0, size=1, earlier=("7-*-0", "7-*-1"))
    with TemporaryDirectory(dir="/tmp") as short:
        made = subprocess.run([sys.executable, "-c", make, short, *names], check=True, capture_output=True, text=True)
        held = private_folder(Path(short), "7-3-0")
        with pytest.raises(UserError, match="no free block"):
            launch.launch(placement, ["report"], {}, folder=tmp_path, temp_root=Path(short), wait_seconds=1)
        assert [Path(line).exists() for line in made.stdout.splitlines()] == [False, False, True, True]
        assert held.exists()
    assert [folder.exists() for folder in meetings] == [False, False, True, True]


def test_a_command_that_has_ended_is_seen_at_once(meeting: Meeting, clock: Clock, handlers: None):
    clock.due[31] = lambda: write_json(meeting.end, {"code": 0})
    assert work(meeting) == 0
    assert clock.now < 32


def wait(meeting: Meeting, node: FakeNode, min_nodes: int, code: int | None = None) -> None:
    meeting.token.write_text("secret")
    driver = SimpleNamespace(poll=lambda: code)
    launch._wait_for_nodes(node, meeting, driver, 30.0, min_nodes, [])  # type: ignore[arg-type]


def test_the_job_goes_on_with_the_nodes_that_come_in_time(
    meeting: Meeting, clock: Clock, capsys: pytest.CaptureFixture
):
    node = FakeNode(replace(WORKER, rank=0, size=4), up=["10.0.0.1", "10.0.0.2"])
    write_json(meeting.node(1), {"host": "n2", "address": "10.0.0.2"})
    write_json(meeting.node(2), {"host": "n3", "address": "10.0.0.3"})
    with pytest.raises(UserError) as raised:
        wait(meeting, node, 3)
    missing = "the launcher on n3 came, but not its Ray; no word from rank 3"
    assert str(raised.value) == f"2 of 4 nodes came together within 30 s: {missing}"
    wait(meeting, node, 2)
    assert capsys.readouterr().err == f"2 of 4 nodes came, and the job continues with these: {missing}\n"


def test_nobody_waits_for_nodes_once_the_command_has_failed(meeting: Meeting, clock: Clock):
    node = FakeNode(replace(WORKER, rank=0))
    wait(meeting, node, 2, code=2)
    assert clock.now < 2
    with pytest.raises(UserError, match="0 of 2 nodes"):
        wait(meeting, node, 2, code=0)


def test_nobody_waits_for_a_ray_that_does_not_start(meeting: Meeting, clock: Clock, capsys: pytest.CaptureFixture):
    node = FakeNode(replace(WORKER, rank=0), up=["10.0.0.1"])
    write_json(meeting.node(1), {"host": "n2", "failed": "Ray ended on 10.0.0.2: no hook"})
    wait(meeting, node, 1)
    assert clock.now < 2
    assert capsys.readouterr().err.endswith("continues with these: Ray ended on 10.0.0.2: no hook\n")


def test_a_ray_that_ends_at_its_start_is_started_once_more(
    meeting: Meeting, clock: Clock, handlers: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(launch, "why_silent", lambda *_: "")
    meeting.complete.unlink()
    clock.due[5] = lambda: write_json(meeting.complete, {})
    node = FakeNode(WORKER, ended=True)
    assert launch._worker(node, meeting, "127.0.0.1:1", []) == 0  # type: ignore[arg-type]
    assert node.starts >= 3  # of which the last was refused
    head = FakeNode(replace(WORKER, rank=0), ended=True)
    with pytest.raises(UserError, match=r"Ray ended on 127\.0\.0\.1"):
        wait(meeting, head, 1)


def test_a_folder_that_hosts_share_is_refused_on_the_second(tmp_path: Path):
    leave_mark(tmp_path, "5f", "n1")
    leave_mark(tmp_path, "5f", "n1")  # another launcher of the host
    leave_mark(tmp_path, "77", "n2")  # of an earlier job
    with pytest.raises(UserError, match=f"^RAYASD_TMP is shared by n1 and n2: {tmp_path.parent} must be"):
        leave_mark(tmp_path, "5f", "n2")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["sweep", "--data", "x", "--run-dir", "runs/night"], "sweep runs/night"),
        (["sweep", "--run-dir=runs/night", "--dry-run"], "sweep runs/night"),
        (["sweep", "--data", "x"], "sweep runs/default"),
        (["embed", "runs/night", "--detect"], "embed runs/night"),
        (["report", "--help"], "report"),
    ],
)
def test_a_command_is_named_for_rays_list(words: list[str], name: str):
    assert name_of(words) == name


def test_a_command_is_not_held_up_by_a_log_that_cannot_be_written(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "python").write_text("#!/bin/bash\nseq 100000\necho $RAY_ADDRESS $RAYASD_NODES_FILE >&2\nexit 3\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    for folder in (tmp_path, tmp_path / "none"):
        node = RayNode(WORKER, {**os.environ}, 20000, folder)
        run = Command(["report"], node, "10.0.0.1:20000", tmp_path / "complete")
        assert run.process.wait(20) == 3
        run.end()
        out, err = capfdbinary.readouterr()
        assert out.endswith(b"\n100000\n")
        assert err == f"10.0.0.1:20000 {tmp_path / 'complete'}\n".encode()
    assert b"\n100000\n" in (tmp_path / "driver.log").read_bytes()
