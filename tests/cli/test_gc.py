"""What ``rayasd gc`` removes, and what it leaves alone."""

import fcntl
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rayasd.files import write_json
from rayasd.sweep import leftovers
from rayasd.sweep.lock import locked
from tests.conftest import Rayasd

KEY = "0123456789abcdef01234567"
OLD_SECONDS = 2 * 3600


def old(path: Path, content: bytes = b"12345") -> Path:
    """Write a file that nobody has touched for two hours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return aged(path)


def aged(path: Path) -> Path:
    moment = time.time() - OLD_SECONDS
    os.utime(path, (moment, moment), follow_symlinks=False)
    return path


def link(path: Path, target: Path) -> Path:
    """Make an old link."""
    path.symlink_to(target)
    return aged(path)


def files(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory of which only the manifest stands."""
    write_json(tmp_path / "run/manifest.json", {"data": {}, "plans": [], "invocations": []})
    return tmp_path / "run"


@pytest.fixture
def gc(rayasd: Rayasd, tmp_path: Path):
    """Run ``rayasd gc`` on a cache and a Ray folder of the test's own."""
    return lambda *words: rayasd("gc", *words, RAYASD_CACHE=str(tmp_path / "cache"), RAY_TMPDIR=str(tmp_path / "tmp"))


def dead_holder() -> dict[str, object]:
    """Lock of a process of this host that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return {"host": socket.gethostname(), "pid": ended.pid, "started": "1", "since": "2026-01-01"}


def left_by_a_killed_driver(run: Path) -> set[Path]:
    for lock in (run / "lock.json", run / "lock-pump.json"):
        write_json(lock, dead_holder())
    return {
        run / "lock.json",
        run / "lock-pump.json",
        old(run / "ray-token"),
        old(run / "ray-token-fan"),
        old(run / ".cells.parquet.abc.part"),
        old(run / "models/both/fan/seed=0/.state.pt.abc.part", bytes(3_000_000)),
        old(run / "ensembles/variant=both+seeds/machine=fan/seed=all/.part-0.parquet.abc.part"),
    }


def test_what_a_killed_driver_left_in_its_run_goes_and_results_stay(run: Path, gc):
    kept = {run / "manifest.json", old(run / "models/both/fan/seed=0/state.pt"), old(run / "part"), old(run / "a.part")}
    left = left_by_a_killed_driver(run)
    shown = gc(run, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert all(str(path) in shown.stdout for path in left)
    assert shown.stdout.splitlines()[-1].startswith("7 leftovers, 3 MB would be removed")
    assert files(run) == kept | left
    done = gc(run)
    assert done.stdout.replace("removed", "would be removed") == shown.stdout
    assert files(run) == kept
    assert gc(run).stdout == "nothing is left over\n"


@pytest.mark.parametrize("lock", ["lock.json", "lock-fan.json"])
def test_a_run_that_somebody_drives_is_left_alone(run: Path, gc, lock: str):
    left = left_by_a_killed_driver(run)
    (run / "lock.json").unlink()
    with locked(run / lock):
        done = gc(run)
    assert done.returncode == 0
    assert f"left alone: {run} is held by process {os.getpid()} on" in done.stdout
    assert files(run) - {run / "manifest.json"} == left - {run / "lock.json"}


def test_a_lock_of_another_host_is_watched_before_it_counts_as_left_behind(run: Path, monkeypatch: pytest.MonkeyPatch):
    from rayasd.errors import UserError
    from rayasd.sweep.store import RunStore

    monkeypatch.setattr("rayasd.sweep.lock.GONE_SECONDS", 0.5)
    write_json(run / "lock.json", {"host": "elsewhere", "pid": 1, "started": "1", "since": "2026-01-01"})
    assert [leftover.path for leftover in leftovers.of_run(RunStore(run), 1)] == [run / "lock.json"]
    assert (run / "lock.json").exists()  # looked at only

    def renewed(seconds: float) -> None:
        os.utime(run / "lock.json")

    monkeypatch.setattr("rayasd.sweep.lock.time.sleep", renewed)
    with pytest.raises(UserError, match="held by process 1 on elsewhere"):
        leftovers.clear_run(RunStore(run), 1)


def test_what_a_report_is_writing_stays(run: Path, gc):
    (run / ".leaderboard.md.abc.part").write_bytes(b"so far")
    assert gc(run).stdout == "nothing is left over\n"
    assert gc(run, "--older-than", 0).returncode == 0
    assert not list(run.glob(".*.part"))


def test_no_link_leads_gc_out_of_a_run(run: Path, gc, tmp_path: Path):
    elsewhere = old(tmp_path / "elsewhere/.precious.part")
    link(run / "models", elsewhere.parent)
    link(run / ".link.part", elsewhere)
    assert gc(run).stdout == "nothing is left over\n"
    assert elsewhere.exists()
    assert (run / ".link.part").is_symlink()


def test_what_is_no_run_is_refused_before_anything_is_removed(run: Path, gc, tmp_path: Path):
    left = left_by_a_killed_driver(run)
    (tmp_path / "home").mkdir()
    done = gc(run, tmp_path / "home")
    assert done.returncode == 2
    assert "is not a run directory" in done.stderr
    assert left <= files(run)


def test_of_the_cache_unfinished_files_locks_and_halves_go_once_they_are_old(gc, tmp_path: Path):
    cache = tmp_path / "cache"
    whole = {old(cache / f"fan-{KEY}.i16"), old(cache / f"fan-{KEY}.parquet")}
    foreign = {old(cache / name) for name in ("a.lock", "notes.parquet", ".x.part", f".gearbox-{KEY}.i16", "b.i16")}
    left = {
        old(cache / f".fan-{KEY}.i16.abc_1.part"),
        old(cache / f"pump-{KEY}.i16"),
        old(cache / f"valve-{KEY}.parquet"),
        old(cache / f"fan-{KEY}.lock", b""),
    }
    young = cache / f".valve-{KEY}.i16.abc.part"
    young.write_bytes(b"so far")
    link(cache / f"slider-{KEY}.i16", next(iter(whole)))
    done = gc()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "4 leftovers, 15 B removed"
    assert files(cache) == whole | foreign | {young, cache / f"slider-{KEY}.i16"}
    assert all(str(path) in done.stdout for path in left)
    gc("--older-than", 0)
    assert not young.exists()


def test_a_lock_of_the_cache_that_somebody_holds_stays(gc, tmp_path: Path):
    lock = old(tmp_path / f"cache/fan-{KEY}.lock", b"")
    with lock.open("r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        done = gc()
    assert done.returncode == 1
    assert str(lock) in done.stderr
    assert lock.exists()


def session(folder: Path, number: int, pid: int) -> Path:
    """A session as Ray makes it, silent for two hours."""
    made = folder / f"session_2026-01-01_00-00-00_{number:06}_{pid}"
    old(made / "logs/raylet.out")
    (made / "sockets").mkdir()
    for path in (made / "logs", made / "sockets", made):
        aged(path)
    return made


def test_sessions_of_rays_that_are_gone_go_and_those_in_use_stay(gc, tmp_path: Path):
    ray, gone_pid = tmp_path / "tmp/ray", int(str(dead_holder()["pid"]))
    gone = session(ray, 1, gone_pid)
    stay = {name: session(ray, i, gone_pid) for i, name in enumerate(("named", "open", "answers", "young"), start=2)}
    stay["driver"] = session(ray, 9, os.getpid())
    (ray / "session_latest").symlink_to(gone)
    target = old(tmp_path / "elsewhere/session_target/file").parent
    stay["link"] = link(ray / f"session_2026-01-01_00-00-00_000010_{gone_pid}", aged(target))
    foreign = old(ray / "session_mine/file")
    os.utime(stay["young"] / "logs/raylet.out")
    sleeping = subprocess.Popen(
        [sys.executable, "-c", "input()", f"--session-dir={stay['named']}"], stdin=subprocess.PIPE
    )
    try:
        os.chdir(tmp_path)  # a socket's path may have 107 bytes
        with (stay["open"] / "logs/raylet.out").open("rb"), socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str((stay["answers"] / "sockets/raylet").relative_to(tmp_path)))
            listening.listen()
            aged(stay["answers"] / "sockets/raylet")
            aged(stay["answers"] / "sockets")
            shown = gc("--dry-run")
            done = gc()
    finally:
        os.chdir(Path(__file__).parent)
        sleeping.communicate()
    assert re.search(r"\n2 leftovers, \d+ B would be removed\n", shown.stdout)
    assert done.stdout.replace("removed", "would be removed") == shown.stdout
    assert not gone.exists()
    assert not (ray / "session_latest").is_symlink()
    assert all(path.exists() for path in (*stay.values(), target, foreign))


def test_the_ray_folder_is_rays_own_choice():
    assert leftovers.ray_folder({}) == Path("/tmp/ray")
    assert leftovers.ray_folder({"TMPDIR": "/scratch"}) == Path("/scratch/ray")
    assert leftovers.ray_folder({"TMPDIR": "/scratch", "RAY_TMPDIR": "/local"}) == Path("/local/ray")
