import errno
import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rayasd.errors import StorageError, UserError
from rayasd.evaluation.scores import Calibration
from rayasd.scoring import arrivals, monitoring
from rayasd.scoring.arrivals import Arrivals, stamp_of
from rayasd.scoring.journal import Journal
from rayasd.scoring.model import ClipScore
from rayasd.scoring.monitoring import Monitor, run_command
from rayasd.scoring.watching import Watch, watch
from tests.command import Rayasd, command_line, environment
from tests.conftest import write_clip
from tests.faults.incoming import recalibrated


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_PAUSE_SECONDS", "_QUIET_SECONDS", "_PAUSES_PER_LISTING"):
        monkeypatch.setattr(arrivals, name, 0.0)


def test_a_folder_that_fails_or_goes_hides_no_other(no_pauses: None, tmp_path: Path, monkeypatch):
    for name in ("bad/a.wav", "gone/b.wav", "good/c.wav"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    list_folder, fails = os.scandir, [errno.EIO]

    def scandir(folder: str) -> Any:
        if fails and Path(folder).name == "bad":
            raise OSError(fails[0], os.strerror(fails[0]), folder)
        if Path(folder).name == "gone":
            (Path(folder) / "b.wav").unlink(missing_ok=True)
            with suppress(OSError):
                Path(folder).rmdir()
        return list_folder(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    said: list[str] = []
    found = Arrivals([tmp_path, tmp_path / "good"], {}, said.append)
    rounds = iter(found)
    for _ in range(3):
        (given,) = next(rounds)
    assert given == (tmp_path / "good/c.wav", stamp_of(tmp_path / "good/c.wav"))
    assert said == [f"{tmp_path / 'bad'}: Input/output error", f"{tmp_path / 'gone'}: No such file or directory"]
    found.done(*given)
    assert next(rounds) == []
    fails.clear()
    ((back, stamp),) = next(rounds)
    assert back == tmp_path / "bad/a.wav"
    found.later(back)
    assert next(rounds) == []
    (tmp_path / "good/c.wav").unlink()
    (tmp_path / "good").rmdir()
    assert next(rounds) == []
    (tmp_path / "good").mkdir()
    os.utime(tmp_path / "bad/a.wav", ns=(1, 1))
    assert next(rounds) == [(back, (1, 1))]  # changed: the minute is forgotten, too
    assert stamp != (1, 1)


def test_a_file_is_given_when_it_has_been_quiet(tmp_path: Path, monkeypatch):
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(arrivals, "time", clock)
    rounds = iter(Arrivals([tmp_path], {}, print))
    for size in (1, 2, 3):
        (tmp_path / "a.wav").write_bytes(b"x" * size)
        assert next(rounds) == []
    assert next(rounds) == []
    assert [path.name for path, _ in next(rounds)] == ["a.wav"]


def line(clip: str, number: int = 1, of: int = 1) -> str:
    return json.dumps({"machine": "fan", "clip": clip, "start": number, "size": 1, "mtime_ns": 2, "pieces": of}) + "\n"


def test_a_results_file_that_was_cut_anywhere_goes_on_after_its_last_whole_clip(tmp_path: Path):
    clips = [line("a"), line("long", 1, 2) + line("long", 2, 2), line("b")]
    content = "".join(clips).encode()
    ends = np.cumsum([0, *map(len, clips)])
    for cut in range(len(content) + 1):
        path = tmp_path / f"{cut}.jsonl"
        path.write_bytes(content[:cut])
        journal = Journal(path, pytest.fail)
        whole = [records[0]["clip"] for records in journal.recorded()]
        assert whole == ["a", "long", "b"][: sum(ends[1:] <= cut)]
        journal.append(line("c"))
        assert path.read_bytes() == content[: max(ends[ends <= cut])] + line("c").encode()


def test_a_results_file_has_one_writer_and_is_of_a_watch(tmp_path: Path):
    journal = Journal(tmp_path / "new/a.jsonl", pytest.fail)
    with pytest.raises(UserError, match="another rayasd score --watch appends to"):
        Journal(tmp_path / "new/a.jsonl", pytest.fail)
    journal.append("")
    (tmp_path / "notes").write_text('{"clip": "x"}\n')
    with pytest.raises(UserError, match="line 1 of .*notes is not of --watch"):
        list(Journal(tmp_path / "notes", pytest.fail).recorded())
    assert (tmp_path / "notes").read_text() == '{"clip": "x"}\n'
    for foreign in (b"no end of line", b"RIFF\0\0\0\0WAVE"):
        (tmp_path / "foreign").write_bytes(foreign)
        with (
            Journal(tmp_path / "foreign", pytest.fail) as journal,
            pytest.raises(UserError, match="line 1 of .*foreign is not of --watch"),
        ):
            list(journal.recorded())
        assert (tmp_path / "foreign").read_bytes() == foreign
    with pytest.raises(UserError, match="cannot open"):
        Journal(tmp_path, pytest.fail)


def test_results_wait_for_space(tmp_path: Path, monkeypatch):
    said: list[str] = []
    journal, write, full = Journal(tmp_path / "a.jsonl", said.append), os.pwrite, [True]

    def pwrite(file: int, content: bytes, at: int) -> int:
        if full:
            write(file, content[:5], at)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, content[:7], at)  # and writes may be short

    monkeypatch.setattr(os, "pwrite", pwrite)
    journal.append(line("a"))
    journal.append(line("b"))
    assert (tmp_path / "a.jsonl").read_text() == ""
    assert said == [
        f"{tmp_path / 'a.jsonl'}: No space left on device: results are kept in memory until they can be written"
    ]
    full.clear()
    journal.append("")
    assert (tmp_path / "a.jsonl").read_text() == line("a") + line("b")


def stub(normal: Sequence[float], kind: str = "held-out") -> Any:
    scores = np.array(normal)
    calibration = Calibration(scores, scores.astype(str).astype(object), kind)
    return SimpleNamespace(
        calibration=calibration, decision=SimpleNamespace(threshold=1.0, reason=None, calibration=kind)
    )


def scored(score: float, section: str = "00", threshold: float = 1.0) -> ClipScore:
    return ClipScore("a.wav", 0, 1, section, score=score, threshold=threshold, anomalous=score > threshold)


def test_alarms_need_so_many_of_the_last_clips_of_the_section():
    monitor = Monitor({"00": stub([0.0]), "01": stub([0.0])}, (2, 3), 50)
    assert [monitor.alarm(scored(score)) for score in (2, 0, 2, 0, 0, 2, 2)] == [0, 0, 1, 0, 0, 0, 1]
    assert not monitor.alarm(scored(2, "01"))
    assert not monitor.alarm(scored(2, "01", threshold=1.5))  # of another model
    assert not monitor.alarm(replace(scored(2, "01"), score=None, reason="bad"))
    assert monitor.alarm(scored(2, "01"))
    assert Monitor({"00": stub([0.0])}, (1, 1), 50).alarm(scored(2))


def test_drift_is_tested_when_so_many_have_come_and_each_clip_once():
    from scipy.stats import ks_2samp

    rng = np.random.default_rng(0)
    normal, fresh = rng.normal(size=60), rng.normal(size=40)
    monitor = Monitor({"00": stub(normal)}, (1, 1), 20)
    found = [monitor.drift(scored(score)) for score in [*fresh, *(fresh[:20] + 3)]]
    assert [number for number, p in enumerate(found) if p is not None] == [19, 39, 59]
    assert found[39] == pytest.approx(ks_2samp(fresh[20:], normal).pvalue)
    assert found[19] > 0.01 < found[39]  # type: ignore[operator]
    assert found[59] < 1e-6  # type: ignore[operator]
    unfair = Monitor({"00": stub(normal, "trained-on")}, (1, 1), 2)
    assert [unfair.drift(scored(9)) for _ in range(4)] == [None] * 4


def test_a_command_that_fails_or_hangs_says_so_and_ends(tmp_path: Path, monkeypatch):
    assert run_command(f"cat > {tmp_path}/given", "the line\n") is None
    assert (tmp_path / "given").read_text() == "the line\n"
    assert run_command("exit 3", "x" * 1_000_000) == "ended with exit code 3"
    assert "exit code 127" in str(run_command("no-such-command 2>/dev/null", ""))
    monkeypatch.setattr(monitoring, "_COMMAND_SECONDS", 0.3)
    began = time.monotonic()
    assert "was ended" in str(run_command(f"(sleep 2; touch {tmp_path}/late) & wait", ""))
    assert time.monotonic() - began < 1.5
    watch = get_context("fork").Process(
        target=run_command, args=(f"touch {tmp_path}/begun; (sleep 2; touch {tmp_path}/late) & wait", "")
    )
    watch.start()
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    watch.kill()
    time.sleep(2.3)
    assert not (tmp_path / "late").exists()


class Model:
    """Scores clips by their names."""

    parts = SimpleNamespace(machine="fan")
    reads_signals = False

    def __init__(self) -> None:
        self.broken = {"memory.wav", "disk.wav", "bug.wav", "together.wav"}
        self.seen: Counter[str] = Counter()

    def fitted(self, section: str | None) -> dict[str, Any]:
        return {"00": stub([0.0])}

    def score(self, paths: Sequence[Path], section: str | None) -> Iterator[ClipScore]:
        for path in paths:
            self.seen[path.name] += 1
            if path.name in self.broken:
                if path.name == "disk.wav":
                    raise StorageError(f"{path} cannot be read")
                if path.name == "memory.wav":
                    raise MemoryError
                if path.name == "bug.wav" or len(paths) > 1:
                    raise ValueError("a bug\nof two lines")
            if path.name == "gone.wav":
                path.unlink(missing_ok=True)
                yield ClipScore(str(path), 0, 0, reason="no such file")
                continue
            if path.name == "replaced.wav" and self.seen[path.name] == 1:
                path.write_bytes(b"other")  # after it was listed, before it is read
            if path.name == "taken.wav":
                path.unlink()
            yield replace(scored(2.0 if path.name == "loud.wav" else 0.5), clip=str(path))


def watched(folder: Path, model: Any, rounds: int, monkeypatch: pytest.MonkeyPatch, **rules: Any) -> None:
    left = [rounds]

    def sleep(_: float) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(arrivals, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    with pytest.raises(KeyboardInterrupt):
        watch(model, [folder], Watch(**rules))


def test_each_clip_fails_alone_and_once(no_pauses: None, tmp_path: Path, monkeypatch, capsys):
    out, clips, model = tmp_path / "s.jsonl", tmp_path / "clips", Model()
    clips.mkdir()
    names = ["bug", "disk", "gone", "good", "loud", "memory", "replaced", "taken", "together", "name\udcff"]
    for name in names:
        (clips / f"{name}.wav").write_bytes(b"x")
    rules = {"out": out, "on_alarm": f"cat >> {tmp_path}/alarms; exit 5"}
    watched(clips, model, 4, monkeypatch, **rules)
    records = [json.loads(text) for text in out.read_text().splitlines()]
    of_name = {Path(record["clip"]).stem: record for record in records}
    assert sorted(of_name) == sorted(set(names) - {"disk", "gone"})
    assert len(records) == len(of_name)
    reasons = {name: record["reason"] for name, record in of_name.items() if record["reason"]}
    assert reasons == {"bug": "ValueError: a bug of two lines", "memory": "needs more memory than there is"}
    assert of_name["replaced"]["size"] == 5
    said = capsys.readouterr().err
    assert said.count("disk.wav cannot be read; rayasd tries it every minute") == 1
    assert said.count("gone.wav: no such file") == 1
    assert "alarm: " in said
    assert "loud.wav: ended with exit code 5" in said
    assert json.loads((tmp_path / "alarms").read_text()) == of_name["loud"]
    assert of_name["loud"]["alarm"] is True
    again = Model()
    again.broken.clear()
    watched(clips, again, 3, monkeypatch, **rules)
    assert dict(again.seen) == {"disk.wav": 1}
    assert len(out.read_text().splitlines()) == len(records) + 1


def test_what_came_before_a_restart_counts(no_pauses: None, tmp_path: Path, monkeypatch, capsys):
    clips, rules = tmp_path / "clips", {"out": tmp_path / "s.jsonl", "alarm": (2, 3), "drift": 3}
    alarms = []
    for folder in ("a", "b", "c"):
        (clips / folder).mkdir(parents=True)
        (clips / folder / "loud.wav").write_bytes(b"x")
        watched(clips, Model(), 2, monkeypatch, **rules)
    records = [json.loads(text) for text in rules["out"].read_text().splitlines()]  # type: ignore[attr-defined]
    alarms = [record["alarm"] for record in records]
    assert alarms == [False, True, True]
    assert [record["drift_p"] is None for record in records] == [True, True, False]


def test_scores_of_another_machine_are_not_continued(no_pauses: None, tmp_path: Path):
    (tmp_path / "s.jsonl").write_text(line("a").replace("fan", "pump"))
    with pytest.raises(UserError, match="s.jsonl has scores of pump: name another --out for fan"):
        watch(Model(), [tmp_path], Watch(out=tmp_path / "s.jsonl"))


def test_a_section_without_a_threshold_is_named(no_pauses: None, tmp_path: Path, monkeypatch, capsys):
    model = Model()
    without = stub([0.0])
    without.decision = SimpleNamespace(threshold=None, reason="no threshold: too few")
    monkeypatch.setattr(model, "fitted", lambda section: {"00": without})
    watched(tmp_path, model, 1, monkeypatch)
    assert "section 00: no threshold: too few: it raises no alarm\n" in capsys.readouterr().err


@pytest.fixture(scope="module")
def packed(tree: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A control's model that was recalibrated to 20 clips, which lie beside it."""
    return recalibrated(tree, cache, tmp_path_factory.mktemp("watching"))


@pytest.mark.slow
def test_a_day_of_watching(packed: Path, cache: Path, tmp_path: Path):
    """200 clips, 5 of them faults, a folder that goes, a process that is killed and starts again."""
    incoming, out, alarms = tmp_path / "in", tmp_path / "scores.jsonl", tmp_path / "alarms"
    (incoming / "sub").mkdir(parents=True)
    (incoming / "sub/stays.txt").touch()
    normal = sorted(packed.with_name("normal").iterdir())
    write_clip(tmp_path / "fault.wav", 3000.0)
    faults = {17, 60, 99, 140, 199}
    command = command_line("score", packed, "--machine", "fan", "--section", "00", "--percentile", "100", "--watch",
                           incoming, "--out", out, "--on-alarm", f"cat >> {alarms}")  # fmt: skip

    def start() -> "subprocess.Popen[str]":
        process = subprocess.Popen(command, env=environment(cache), stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert "watching" in process.stderr.readline()
        return process

    def arrive(numbers: range) -> None:
        for n in numbers:
            new = incoming / f".{n:03}.part"
            shutil.copyfile(tmp_path / "fault.wav" if n in faults else normal[n % 20], new)
            new.rename(incoming / f"{n:03}.wav")

    def count() -> int:
        return len(out.read_text().splitlines()) if out.exists() else 0

    def wait_for(lines: int) -> None:
        end = time.monotonic() + 60
        while count() < lines:
            assert time.monotonic() < end, count()
            time.sleep(0.02)

    arrive(range(60))
    process = start()
    wait_for(10)
    arrive(range(60, 120))
    shutil.rmtree(incoming / "sub")
    wait_for(70)
    process.kill()  # while it scores
    process.wait()
    arrive(range(120, 200))
    assert count() < 200
    process = start()
    wait_for(200)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    records = [json.loads(text) for text in out.read_text().splitlines()]
    assert sorted(Path(record["clip"]).name for record in records) == [f"{n:03}.wav" for n in range(200)]
    assert {int(Path(record["clip"]).stem) for record in records if record["alarm"]} == faults
    told = [json.loads(text) for text in alarms.read_text().splitlines()]
    assert {int(Path(record["clip"]).stem) for record in told} == faults
    assert all(record["p_value"] == 1 / 21 for record in told)
    assert "scores of the last 50 clips differ from those of normal clips" in said  # copies have distance 0


def test_options_of_watching_are_checked(packed: Path, tmp_path: Path, rayasd: Rayasd):
    for words, said in (
        (("--watch", "--format", "csv"), "leave --format out"),
        (("--watch", "--alarm", "3/2"), "--alarm 3/2: write K/N"),
        (("--watch", "--alarm", "often"), "--alarm often: write K/N"),
        (("--on-alarm", "true"), "--on-alarm needs --watch"),
        (("--alarm", "3/5"), "--alarm needs --watch"),
        (("--drift", "7"), "--drift needs --watch"),
        (("--out", "new/a.wav"), "--out new/a.wav is named as a recording"),
        (("--watch",), "no section is given"),
    ):
        refused = rayasd("score", packed, tmp_path, *words)
        assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr
        assert len(refused.stderr.splitlines()) == 1
