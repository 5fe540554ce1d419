"""One driver a run: whose lock counts, and who may take it over."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Timer

import pytest

from rayasd.errors import UserError
from rayasd.files import read_record, write_json
from rayasd.sweep import lock
from rayasd.sweep.lock import holder_of, locked, refuse_if_held, see_if_held
from rayasd.sweep.store import RunStore
from tests.cli.test_sweep import wait_until
from tests.faults.places import Place, mounted  # noqa: F401 - a fixture

pytestmark = pytest.mark.slow  # processes that hold, freeze and die, and leases that run out

PROLOGUE = """
import os, select, sys, time
from pathlib import Path
from rayasd.errors import Interrupted, UserError
from rayasd.sweep import lock
lock.RENEW_SECONDS, lock.GONE_SECONDS = 0.05, 2.0
path = Path(sys.argv[1])
def tell(what): print(what, flush=True)
"""
HOLD = """
try:
    with lock.locked(path) as check:
        tell("holds")
        while not select.select([sys.stdin], [], [], 0.05)[0]:
            check()
except UserError as error:
    tell(error)
except Interrupted:
    sys.exit(75)  # as the command line does
"""
CONTEND = """
for line in sys.stdin:
    try:
        with lock.locked(path):
            tell("won")
            sys.stdin.readline()
    except UserError:
        tell("refused")
        sys.stdin.readline()
    tell("left")
"""
ELSEWHERE = {"host": "elsewhere", "pid": 7, "started": "1", "place": "another kernel", "since": "then"}
CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
Started = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    """Start plain Python processes on one lock; whatever still runs at the end is killed."""
    processes: list[subprocess.Popen[str]] = []

    def start(code: str = HOLD, *wrapper: str) -> "subprocess.Popen[str]":
        command = [*wrapper, sys.executable, "-c", PROLOGUE + code, str(tmp_path / "lock.json")]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        with suppress(OSError):
            os.kill(inside(process), signal.SIGKILL)
        process.kill()
        process.communicate()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a lock count as left behind after a second."""
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(lock, "GONE_SECONDS", 1.0)


@pytest.fixture
def containers() -> None:
    """Skip where PID namespaces cannot be made."""
    if shutil.which("unshare") is None or subprocess.run([*CONTAINER, "true"], capture_output=True).returncode:
        pytest.skip("only root may make PID namespaces, and not in every container")


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def inside(process: "subprocess.Popen[str]") -> int:
    """Number, as this test sees it, of the Python process that ``unshare`` started, or of a process without one."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0]) if children else process.pid


def kill(process: "subprocess.Popen[str]") -> None:
    os.kill(inside(process), signal.SIGKILL)
    process.wait()


def test_a_killed_holder_is_followed_at_once(started: Started, tmp_path: Path):
    holder = started()
    assert said(holder) == "holds"
    assert holder_of(tmp_path / "lock.json")["pid"] == holder.pid
    with pytest.raises(UserError, match=f"held by process {holder.pid} on .* since 2"):
        refuse_if_held(tmp_path / "lock.json")
    kill(holder)
    assert holder_of(tmp_path / "lock.json") == {}
    began = time.monotonic()
    with locked(tmp_path / "lock.json"):
        assert holder_of(tmp_path / "lock.json")["pid"] == os.getpid()
    assert time.monotonic() - began < 20
    assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_that_nobody_has_waited_for_is_followed_at_once(started: Started, tmp_path: Path):
    holder = started()
    assert said(holder) == "holds"
    holder.kill()  # process 1 of many containers waits for nobody: the dead keep their numbers
    wait_until(lambda: ") Z " in Path(f"/proc/{holder.pid}/stat").read_text())
    began = time.monotonic()
    with locked(tmp_path / "lock.json"):
        pass
    assert time.monotonic() - began < 20


@pytest.mark.slow
def test_of_many_who_find_a_lock_left_behind_one_gets_it(started: Started, tmp_path: Path):
    path = tmp_path / "lock.json"
    holder = started()
    assert said(holder) == "holds"
    kill(holder)
    left = path.read_text()
    contenders = [started(CONTEND) for _ in range(6)]
    outcomes: Counter[int] = Counter()
    for _ in range(30):
        path.write_text(left)
        for contender in contenders:
            tell(contender)
        outcomes[[said(contender) for contender in contenders].count("won")] += 1
        for contender in contenders:
            tell(contender)
        assert {said(contender) for contender in contenders} == {"left"}
        assert list(tmp_path.iterdir()) == []
    assert outcomes == {1: 30}


def test_a_lock_that_a_quicker_one_has_taken_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The slow one read the lock while it was left behind, and acts after another process has taken it over."""
    path, quicker = tmp_path / "lock.json", locked(tmp_path / "lock.json")
    write_json(path, ELSEWHERE)
    monkeypatch.setattr(lock, "GONE_SECONDS", 0.2)
    looks, gaps = 0, []

    def look_slowly(*arguments: object) -> object:
        nonlocal looks
        looks, seen = looks + 1, see_if_held(*arguments)
        if looks == 1:
            path.unlink()
            quicker.__enter__()
        return seen

    def read(file: Path) -> dict[str, object]:
        gaps.append(not path.exists())  # in which a third one could take it too
        return read_record(file)

    monkeypatch.setattr(lock, "see_if_held", look_slowly)
    monkeypatch.setattr(lock, "read_record", read)
    with pytest.raises(UserError, match=f"held by process {os.getpid()} on"), locked(path):
        pass
    assert not any(gaps)
    assert read_record(path)["pid"] == os.getpid()
    quicker.__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


def test_who_finds_a_lock_being_replaced_waits_for_its_turn(started: Started, tmp_path: Path):
    """Two parts of a run may start at once after the whole was killed: neither is in the other's way."""
    holder = started()
    assert said(holder) == "holds"
    kill(holder)
    turn = locked(tmp_path / ".lock.json.turn.part")
    turn.__enter__()
    Timer(0.3, turn.__exit__, (None, None, None)).start()
    refuse_if_held(tmp_path / "lock.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("as_empty", [False, True])
def test_one_that_was_killed_while_it_replaced_a_lock_stops_nobody(
    started: Started, tmp_path: Path, as_empty: bool, short: None
):
    holder = started()
    assert said(holder) == "holds"
    kill(holder)
    turn = tmp_path / ".lock.json.turn.part"
    turn.write_text("" if as_empty else (tmp_path / "lock.json").read_text())
    with locked(tmp_path / "lock.json"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("before", ["", json.dumps(ELSEWHERE), json.dumps(ELSEWHERE | {"place": None})])
def test_a_holder_on_another_host_is_followed_when_it_renews_no_more(tmp_path: Path, before: str, short: None):
    path = tmp_path / "lock.json"
    path.write_text(before)
    assert holder_of(path).get("host") == json.loads(before or "{}").get("host")
    began = time.monotonic()
    with locked(path):
        assert time.monotonic() - began > 1.0
        assert holder_of(path)["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_job_that_was_put_back_in_the_queue_waits_for_its_earlier_self(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, containers: None
):
    """Slurm restarts the job of a node that does not answer; its processes may still write."""
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    earlier = started(HOLD, "unshare", "--uts", "sh", "-c", 'hostname node07; exec "$@"', "sh", *CONTAINER)
    assert said(earlier) == "holds"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert "is held by process" in said(started())
    kill(earlier)
    assert said(started()) == "holds"


@pytest.mark.slow
def test_a_holder_in_another_container_with_our_host_name_is_respected(
    started: Started, tmp_path: Path, containers: None
):
    holder = started(HOLD, *CONTAINER)
    assert said(holder) == "holds"
    assert read_record(tmp_path / "lock.json")["pid"] == 1  # as every container's first process
    other = started(HOLD, *CONTAINER)
    assert f"is held by process 1 on {os.uname().nodename} since" in said(other)
    assert "is held by process 1" in said(started())
    assert holder_of(tmp_path / "lock.json")["pid"] == 1
    kill(holder)
    assert said(started(HOLD, *CONTAINER)) == "holds"


@pytest.mark.slow
def test_where_proc_shows_the_numbers_of_another_namespace_a_holder_is_respected_and_followed(
    started: Started, containers: None
):
    with subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", "sleep", "60"]) as container:
        wait_until(lambda: inside(container) != container.pid)
        enter = ("nsenter", f"--pid=/proc/{inside(container)}/ns/pid")
        holder = started(HOLD, *enter)
        assert said(holder) == "holds"
        assert "is held by process" in said(started(HOLD, *enter))
        kill(holder)
        assert said(started(HOLD, *enter)) == "holds"
        container.kill()


def test_what_proc_tells_of_another_namespace_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: None):
    path = tmp_path / "lock.json"
    with monkeypatch.context() as patch:
        patch.setattr(lock.os, "getpid", lambda: 2**30)  # which this /proc does not know
        with locked(path):
            record = path.read_text()
    assert json.loads(record) | {"place": None, "started": None} == json.loads(record)
    path.write_text(record)
    with locked(path):  # not told by its process, but followed
        pass


@pytest.mark.slow
def test_a_holder_that_was_suspended_until_it_was_replaced_ends(started: Started, tmp_path: Path, containers: None):
    holder = started(HOLD, *CONTAINER)
    assert said(holder) == "holds"
    os.kill(inside(holder), signal.SIGSTOP)
    follower = started(HOLD, *CONTAINER)
    assert said(follower) == "holds"
    taken = (tmp_path / "lock.json").read_text()
    os.kill(inside(holder), signal.SIGCONT)
    assert holder.wait(20) == 75
    assert (tmp_path / "lock.json").read_text() == taken
    tell(follower)
    assert follower.wait(20) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_holder_of_this_host_that_is_suspended_keeps_its_lock(started: Started, tmp_path: Path):
    holder = started()
    assert said(holder) == "holds"
    os.kill(holder.pid, signal.SIGSTOP)
    assert f"is held by process {holder.pid}" in said(started())
    os.kill(holder.pid, signal.SIGCONT)
    tell(holder)
    assert holder.wait(20) == 0


def test_readers_change_nothing(started: Started, tmp_path: Path, short: None):
    path = tmp_path / "lock.json"
    holder = started()
    assert said(holder) == "holds"
    kill(holder)
    before = path.read_text(), path.stat().st_mtime_ns, list(tmp_path.iterdir())
    assert holder_of(path) == {}
    assert see_if_held(path)[0]["pid"] == holder.pid
    assert (path.read_text(), path.stat().st_mtime_ns, list(tmp_path.iterdir())) == before


def test_a_lock_that_has_no_room_is_not_left_behind(tmp_path: Path, mounted: type[Place]):  # noqa: F811
    place = mounted(tmp_path / "disk", "size=64k")
    filler = place.fill(leave=0)
    with suppress(OSError), filler.open("ab") as file:
        file.write(bytes(1 << 20))
    with pytest.raises(OSError, match="No space"), locked(place.folder / "lock.json"):
        pass
    assert list(place.folder.iterdir()) == [filler]


def test_a_lock_whose_server_finds_no_room_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lock.os, "fsync", full)
    with pytest.raises(OSError, match="No space"), locked(tmp_path / "lock.json"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_whose_disk_became_read_only_is_left_and_replaced_later(
    tmp_path: Path,
    mounted: type[Place],  # noqa: F811
):
    place = mounted(tmp_path / "disk", "size=1m")
    path = place.folder / "lock.json"
    with locked(path):
        assert place.remount("ro")
        assert holder_of(path)["pid"] == os.getpid()
    assert path.exists()
    assert place.remount("rw")
    write_json(path, read_record(path) | {"started": "1"})  # this process goes on here; a driver has ended by now
    began = time.monotonic()
    with locked(path):
        pass
    assert time.monotonic() - began < 20
    assert list(place.folder.iterdir()) == []


def test_parts_that_may_overlap_are_refused_and_others_are_not(tmp_path: Path):
    def part(*names: str):
        return RunStore(tmp_path, names).held()

    with part("fan"), part("pump"), pytest.raises(UserError, match="is held by process"), part("2of3"):
        pass
    with part("1of3"), part("2of3"):
        for names in (("2of3",), ("1of2",), ("fan",)):
            with pytest.raises(UserError, match="is held by process"), part(*names):
                pass
