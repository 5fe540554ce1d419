"""A launcher's part without a Ray: what it reads in the meeting's folder, and what signals do to it."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from rayasd.cluster import launch
from rayasd.cluster.launch import Interruption, Meeting
from rayasd.cluster.placement import Placement
from rayasd.errors import UserError
from rayasd.files import write_json

WORKER = Placement(job="j", rank=1, size=2, address="127.0.0.1", cpus=1, gpus=0)


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
    made.folder.mkdir()
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
    node = SimpleNamespace(placement=WORKER, start=lambda address: None, ended=False, last_words=lambda: "ended")
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
    assert launch._read(meeting.node(1)) == {"left": True}


def test_the_first_trouble_is_what_all_are_told(meeting: Meeting):
    assert meeting.trouble() is None
    meeting.report("no ports")
    meeting.report("another one's, later")
    assert meeting.trouble() == "no ports"
    assert [path.name for path in meeting.folder.glob("*trouble*")] == ["trouble.json"]


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
    def none(*_: object) -> int:
        raise UserError("no free block")

    meeting = Meeting(tmp_path / "launch-j")
    clock.due[5] = lambda: (meeting.folder.mkdir(), write_json(meeting.head, {"address": "127.0.0.1:1"}))
    monkeypatch.setattr(launch, "free_ports", none)
    with pytest.raises(UserError, match="no free block"):
        launch.launch(WORKER, ["report"], {}, folder=tmp_path, temp_root=tmp_path, wait_seconds=10)
    assert meeting.trouble() == "no free block"


def test_a_command_that_has_ended_is_seen_at_once(meeting: Meeting, clock: Clock, handlers: None):
    clock.due[31] = lambda: write_json(meeting.end, {"code": 0})
    assert work(meeting) == 0
    assert clock.now < 32


def test_why_the_nodes_do_not_come_together_is_said(meeting: Meeting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    waiting = tmp_path / "python"
    waiting.write_text(
        "#!/bin/bash\necho 1\necho 'RuntimeError Version mismatch' >&2\necho '[log of Ray]' >&2\nexit 1\n"
    )
    waiting.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(waiting))
    node = SimpleNamespace(placement=replace(WORKER, rank=0), environment=os.environ, folder=tmp_path, ended=False)
    write_json(meeting.node(1), {})
    with pytest.raises(UserError, match=r"^1 of 2 nodes .* but not their Ray \(RuntimeError Version mismatch\)$"):
        launch._wait_for_nodes(node, meeting, "127.0.0.1:1", 5.0, [])
