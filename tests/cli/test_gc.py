"""What ``rayasd gc`` removes, and what it leaves alone."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rayasd.cluster.folder import MARK
from rayasd.data.waveforms import open_waveforms
from rayasd.files import CACHE_TAG, mark_as_cache, write_json
from rayasd.sweep import leftovers
from rayasd.sweep.lock import locked
from tests.command import Rayasd

KEY = "0123456789abcdef01234567"
OLD_SECONDS = 2 * 3600
HOLD = """
import sys
from pathlib import Path
from rayasd.cluster.folder import _hold
_hold(Path(sys.argv[1]), None)
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
    """Run ``rayasd gc``, with folders in its environment that it was not told to look at."""
    own = {"RAY_TMPDIR": str(tmp_path / "rays"), "RAYASD_TMP": str(tmp_path / "rays")}
    return lambda *words: rayasd("gc", *words, RAYASD_CACHE=str(tmp_path / "cache"), **own)


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    mark_as_cache(tmp_path / "cache")
    return tmp_path / "cache"


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
    shown = gc(run)
    assert shown.returncode == 0, shown.stderr
    assert all(str(path) in shown.stdout for path in left)
    assert shown.stdout.splitlines()[-1].startswith("7 leftovers, 3 MB would be removed by --yes")
    assert files(run) == kept | left
    done = gc(run, "--yes")
    assert done.stdout.replace("removed", "would be removed by --yes") == shown.stdout
    assert files(run) == kept
    assert gc(run).stdout == "nothing is left over\n"


@pytest.mark.parametrize("lock", ["lock.json", "lock-fan.json"])
def test_a_run_that_somebody_drives_is_left_alone(run: Path, gc, lock: str):
    left = left_by_a_killed_driver(run)
    (run / "lock.json").unlink()
    with locked(run / lock):
        done = gc(run, "--yes")
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
    assert gc(run, "--yes").stdout == "nothing is left over\n"
    assert gc(run, "--older-than", 0, "--yes").returncode == 0
    assert not list(run.glob(".*.part"))


def test_no_link_leads_gc_out_of_a_run(run: Path, gc, tmp_path: Path):
    elsewhere = old(tmp_path / "elsewhere/.precious.part")
    link(run / "models", elsewhere.parent)
    link(run / ".link.part", elsewhere)
    assert gc(run, "--yes").stdout == "nothing is left over\n"
    assert elsewhere.exists()
    assert (run / ".link.part").is_symlink()


def test_what_is_no_run_is_refused_before_anything_is_removed(run: Path, gc, tmp_path: Path):
    left = left_by_a_killed_driver(run)
    (tmp_path / "home").mkdir()
    done = gc(run, tmp_path / "home", "--yes")
    assert done.returncode == 2
    assert "is not a run directory" in done.stderr
    assert left <= files(run)


def test_of_the_cache_unfinished_files_locks_and_halves_go_once_they_are_old(gc, marked: Path):
    whole = {old(marked / f"fan-{KEY}.{kind}") for kind in ("i16", "parquet", "features")}
    foreign = {old(marked / name) for name in ("a.lock", "notes.parquet", ".x.part", f".gearbox-{KEY}.i16", "b.i16")}
    left = {
        old(marked / f".fan-{KEY}.i16.abc_1.part"),
        old(marked / f".fan-{KEY}.features.abc_1.part"),
        old(marked / f"pump-{KEY}.i16"),
        old(marked / f"valve-{KEY}.parquet"),
        old(marked / f"fan-{KEY}.lock", b""),
    }
    young = marked / f".valve-{KEY}.i16.abc.part"
    young.write_bytes(b"so far")
    link(marked / f"slider-{KEY}.i16", next(iter(whole)))
    assert gc("--cache", marked).stdout.endswith("5 leftovers, 20 B would be removed by --yes\n")
    assert all(path.exists() for path in left)
    done = gc("--cache", marked, "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "5 leftovers, 20 B removed"
    assert files(marked) == whole | foreign | {marked / CACHE_TAG, young, marked / f"slider-{KEY}.i16"}
    assert all(str(path) in done.stdout for path in left)
    gc("--cache", marked, "--older-than", 0, "--yes")
    assert not young.exists()


def test_a_lock_of_the_cache_that_somebody_holds_stays(gc, marked: Path):
    lock = old(marked / f"fan-{KEY}.lock", b"")
    code = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", code, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        done = gc("--cache", marked, "--yes")
    finally:
        holder.kill()
        holder.wait()
    assert done.returncode == 1
    assert str(lock) in done.stderr
    assert lock.exists()


def test_gc_looks_only_where_it_is_told(run: Path, gc, marked: Path, tmp_path: Path):
    left = {old(marked / f"pump-{KEY}.i16"), our_ray(tmp_path / "rays", 1, number_of_none())}
    assert gc(run, "--yes").stdout == "nothing is left over\n"
    for words, said in (((), "name what to look at"), (("--unused-for", 1), "--unused-for needs --cache"),
                        (("--cache", tmp_path / "rays"), "is no cache of rayasd's: it has no CACHEDIR.TAG"),
                        (("--temp-dir", tmp_path / "no"), "no such folder")):  # fmt: skip
        refused = gc(*words, "--yes")
        assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr
    assert gc("--temp-dir", marked, "--yes").stdout == "nothing is left over\n"
    assert all(path.exists() for path in left)


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
    old(folder / MARK)
    old(folder / "start-0.log")
    old(folder / "waiting.log")
    aged(folder / "ray")
    return aged(folder)


def test_folders_of_our_own_rays_go_when_nobody_holds_them(gc, tmp_path: Path):
    rays, gone_pid = tmp_path / "rays", number_of_none()
    gone = our_ray(rays, 1, gone_pid)
    empty = rays / "ra000000ff"
    old(empty / MARK)
    aged(empty)
    without_mark = our_ray(rays, 99, gone_pid)
    (without_mark / MARK).unlink()
    aged(without_mark)
    stay = {name: our_ray(rays, i, gone_pid) for i, name in enumerate(("held", "young", "more"), start=2)}
    stay["without mark"] = without_mark
    stay["link"] = link(rays / "ra0000000a", our_ray(tmp_path / "elsewhere", 11, gone_pid))
    stay["foreign"] = old(rays / "radar123/ray/file").parents[1]
    old(stay["more"] / "notes.txt")
    aged(stay["more"])
    os.utime(stay["young"] / "start-0.log")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, stay["held"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        shown = gc("--temp-dir", rays)
        done = gc("--temp-dir", rays, "--yes")
    finally:
        holder.kill()
        holder.wait()
    assert re.search(r"\n2 leftovers, \d+ B would be removed by --yes\n", shown.stdout), shown.stdout
    assert done.stdout.replace("removed", "would be removed by --yes") == shown.stdout
    assert not gone.exists()
    assert not empty.exists()
    assert all(path.exists() for path in stay.values())
    gc("--temp-dir", rays, "--yes")
    assert not stay["held"].exists()  # its holder was killed


@pytest.mark.slow
def test_what_no_unit_has_opened_for_long_goes_from_the_cache_if_asked(gc, marked: Path):
    used, unused, half = (
        [marked / f"{name}-{KEY}{end}" for end in (".parquet", ".i16")] for name in ("fan", "pump", "b")
    )
    used.append(marked / f"fan-{KEY[::-1]}.features")
    unused.append(marked / f"pump-{KEY[::-1]}.features")
    for path in (*used, *unused, half[0]):
        old(path)
    days = time.time() - 40 * 86400
    for path in (*unused, used[1]):
        os.utime(path, (days, days))  # what tells the use is the index
    assert "half" in gc("--cache", marked, "--older-than", 1, "--yes").stdout
    assert files(marked) == {*used, *unused, marked / CACHE_TAG}
    assert gc("--cache", marked, "--unused-for", 41).stdout == "nothing is left over\n"
    assert re.search(r"3 leftovers, 15 B would be removed by --yes", gc("--cache", marked, "--unused-for", 30).stdout)
    assert gc("--cache", marked, "--unused-for", 30, "--yes").returncode == 0
    assert files(marked) == {*used, marked / CACHE_TAG}


def test_a_unit_that_opens_a_cache_notes_its_use(catalog, cache: Path, small_config, monkeypatch: pytest.MonkeyPatch):
    index = cache / f"{catalog.of('fan')['cache'][0].as_py()}.parquet"
    aged(index)
    open_waveforms(catalog, "fan", small_config.data, cache)
    assert time.time() - index.stat().st_mtime < 600

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("rayasd.data.waveforms.os.utime", refuse)  # a cache of somebody else's
    assert len(open_waveforms(catalog, "fan", small_config.data, cache).frames)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
def test_what_other_people_left_is_left_alone(gc, run: Path, marked: Path, tmp_path: Path):
    mine, theirs = old(run / ".mine.part"), [old(run / ".theirs.part"), old(run / "ray-token-fan")]
    subprocess.run([sys.executable, "-c", DYING, run / "lock-fan.json", run / "lock-pump.json"], check=True)
    meeting = tmp_path / "launch-1-0-0"
    theirs += [run / "lock-fan.json", run / "lock-pump.json", old(marked / f"pump-{KEY}.i16"), meeting]
    theirs += [old(meeting / file) for file in ("token", "head.json")]
    meeting.chmod(0o700)
    aged(meeting)
    for path in theirs:
        os.chown(path, 4711, 4711)
    done = gc(run, "--cache", marked, "--launches", tmp_path, "--yes")
    assert done.stdout.splitlines()[-1] == "1 leftover, 5 B removed"
    assert not mine.exists()
    assert all(path.exists() for path in theirs)


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
    done = gc("--launches", here, "--yes")
    assert f"{gone}  (meeting of a launch that is gone)" in done.stdout
    assert not gone.exists()
    assert gc("--launches", here, "--yes", "--older-than", 0).stdout == "nothing is left over\n"
    assert (running / "token").exists()
    assert (others / "token").exists()
