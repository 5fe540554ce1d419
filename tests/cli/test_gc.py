"""What ``rayasd gc`` removes, and what it leaves alone."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rayasd.data.waveforms import open_waveforms
from rayasd.files import write_json
from rayasd.sweep import leftovers
from rayasd.sweep.lock import locked
from tests.command import Rayasd

KEY = "0123456789abcdef01234567"
OLD_SECONDS = 2 * 3600
HOLD = """
import sys
from pathlib import Path
from rayasd.cluster.folder import _hold
_hold(Path(sys.argv[1]))
print(flush=True)
input()
"""


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
    own = {"RAY_TMPDIR": str(tmp_path / "tmp"), "RAYASD_TMP": str(tmp_path / "rays")}
    return lambda *words: rayasd("gc", *words, RAYASD_CACHE=str(tmp_path / "cache"), **own)


def number_of_none() -> int:
    """Number of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


DYING = """
import os, sys
from pathlib import Path
from rayasd.sweep.lock import locked
with locked(Path(sys.argv[1])), locked(Path(sys.argv[2])):
    os._exit(0)
"""


def left_by_a_killed_driver(run: Path) -> set[Path]:
    subprocess.run([sys.executable, "-c", DYING, run / "lock.json", run / "lock-pump.json"], check=True)
    return {
        run / "lock.json",
        run / "lock-pump.json",
        old(run / "ray-token"),
        old(run / "ray-token-fan"),
        old(run / ".cells.parquet.abc.part"),
        old(run / "models/both/fan/seed=0/.state.pt.abc.part", bytes(3_000_000)),
        old(run / "ensembles/variant=both+seeds/machine=fan/seed=all/.part-0.parquet.abc.part"),
    }


@pytest.mark.slow
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
    whole = {old(cache / f"fan-{KEY}.{kind}") for kind in ("i16", "parquet", "features")}
    foreign = {old(cache / name) for name in ("a.lock", "notes.parquet", ".x.part", f".gearbox-{KEY}.i16", "b.i16")}
    left = {
        old(cache / f".fan-{KEY}.i16.abc_1.part"),
        old(cache / f".fan-{KEY}.features.abc_1.part"),
        old(cache / f"pump-{KEY}.i16"),
        old(cache / f"valve-{KEY}.parquet"),
        old(cache / f"fan-{KEY}.lock", b""),
    }
    young = cache / f".valve-{KEY}.i16.abc.part"
    young.write_bytes(b"so far")
    link(cache / f"slider-{KEY}.i16", next(iter(whole)))
    done = gc()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "5 leftovers, 20 B removed"
    assert files(cache) == whole | foreign | {young, cache / f"slider-{KEY}.i16"}
    assert all(str(path) in done.stdout for path in left)
    gc("--older-than", 0)
    assert not young.exists()


def test_a_lock_of_the_cache_that_somebody_holds_stays(gc, tmp_path: Path):
    lock = old(tmp_path / f"cache/fan-{KEY}.lock", b"")
    code = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", code, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        done = gc()
    finally:
        holder.kill()
        holder.wait()
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


def our_ray(root: Path, number: int, pid: int) -> Path:
    """A folder of a Ray of ours with a session, silent for two hours."""
    folder = root / f"ra{number:08x}"
    session(folder / "ray", number, pid)
    old(folder / "start-0.log")
    old(folder / "waiting.log")
    aged(folder / "ray")
    return aged(folder)


def test_folders_of_our_own_rays_go_when_nobody_holds_them(gc, tmp_path: Path):
    rays, gone_pid = tmp_path / "rays", number_of_none()
    gone = our_ray(rays, 1, gone_pid)
    empty = rays / "ra000000ff"
    empty.mkdir()
    aged(empty)
    stay = {name: our_ray(rays, i, gone_pid) for i, name in enumerate(("held", "young", "more"), start=2)}
    stay["link"] = link(rays / "ra0000000a", our_ray(tmp_path / "elsewhere", 11, gone_pid))
    stay["foreign"] = old(rays / "radar123/ray/file").parents[1]
    old(stay["more"] / "notes.txt")
    aged(stay["more"])
    os.utime(stay["young"] / "start-0.log")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, stay["held"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        shown = gc("--dry-run")
        done = gc()
    finally:
        holder.kill()
        holder.wait()
    assert re.search(r"\n2 leftovers, \d+ B would be removed\n", shown.stdout), shown.stdout
    assert done.stdout.replace("removed", "would be removed") == shown.stdout
    assert not gone.exists()
    assert not empty.exists()
    assert all(path.exists() for path in stay.values())
    gc()
    assert not stay["held"].exists()  # its holder was killed


@pytest.mark.slow
def test_what_no_unit_has_opened_for_long_goes_from_the_cache_if_asked(gc, tmp_path: Path):
    cache = tmp_path / "cache"
    used, unused, half = (
        [cache / f"{name}-{KEY}{end}" for end in (".parquet", ".i16")] for name in ("fan", "pump", "b")
    )
    used.append(cache / f"fan-{KEY[::-1]}.features")
    unused.append(cache / f"pump-{KEY[::-1]}.features")
    for path in (*used, *unused, half[0]):
        old(path)
    days = time.time() - 40 * 86400
    for path in (*unused, used[1]):
        os.utime(path, (days, days))  # what tells the use is the index
    assert "half" in gc("--older-than", 1).stdout
    assert files(cache) == {*used, *unused}
    assert gc("--unused-for", 41).stdout == "nothing is left over\n"
    assert re.search(r"3 leftovers, 15 B would be removed", gc("--unused-for", 30, "--dry-run").stdout)
    assert gc("--unused-for", 30).returncode == 0
    assert files(cache) == set(used)


def test_a_unit_that_opens_a_cache_notes_its_use(catalog, cache: Path, small_config, monkeypatch: pytest.MonkeyPatch):
    index = cache / f"{catalog.of('fan')['cache'][0].as_py()}.parquet"
    aged(index)
    open_waveforms(catalog, "fan", small_config.data, cache)
    assert time.time() - index.stat().st_mtime < 600

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("rayasd.data.waveforms.os.utime", refuse)  # a cache of somebody else's
    assert len(open_waveforms(catalog, "fan", small_config.data, cache).frames)


def test_meetings_of_killed_launches_go_and_those_of_running_ones_stay(gc, tmp_path: Path):
    here = tmp_path / "work"

    def meeting(name: str) -> Path:
        for file in ("token", "head.json", "node-1.json"):
            old(here / name / file)
        (here / name).chmod(0o700)
        return aged(here / name)

    gone, running, others = meeting("launch-1-0-0"), meeting("launch-2-0-0"), meeting("launch-plans")
    os.utime(running / "head.json")  # as its head does
    others.chmod(0o755)
    done = gc()
    assert f"{gone}  (meeting of a launch that is gone)" in done.stdout
    assert not gone.exists()
    assert gc("--older-than", 0).stdout == "nothing is left over\n"
    assert (running / "token").exists()
    assert (others / "token").exists()
