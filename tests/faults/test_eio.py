"""A disk that answers EIO at random: nothing is lost, nothing is scored twice, and the results are the same."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rayasd.scoring import load
from rayasd.scoring.loading import RunModels
from rayasd.scoring.packing import write_pack
from tests.command import command_line, environment
from tests.conftest import run_locally, small_sweep
from tests.faults.eio import failing, library
from tests.faults.plant import QUICK

pytestmark = pytest.mark.slow

CODES = {1, 75}
"""Of a command that storage has stopped: the same command goes on."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the library that fails calls."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to compile the library that fails calls")
    return library(tmp_path_factory.mktemp("eio"))


@pytest.fixture(scope="module")
def run(tree: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    return run_locally(tree, cache, folder, "--variants", "statistics", "--detectors", "knn-1", "--machines", "fan")


def test_a_watch_scores_each_clip_once_from_a_disk_that_fails(
    run: Path, tree: Path, cache: Path, tmp_path: Path, made: Path
):
    packed, incoming, out = tmp_path / "fan.rayasd", tmp_path / "in", tmp_path / "scores.jsonl"
    write_pack(packed, [RunModels(run).parts("fan")])
    names = [f"{number:02}.wav" for number in range(30)]
    for name, clip in zip(names, sorted((tree / "fan").rglob("*.wav")), strict=False):
        (incoming / name[0]).mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, incoming / name[0] / name)
    words = command_line("score", packed, "--section", "00", "--watch", incoming, "--out", out)[3:]
    variables = environment(cache, **failing(made, incoming, 40))
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen([sys.executable, "-c", QUICK, *words], env=variables, stderr=said)
    end = time.monotonic() + 120
    while not out.exists() or len(out.read_text().splitlines()) < len(names):
        assert process.poll() is None, (tmp_path / "said").read_text()
        assert time.monotonic() < end, (tmp_path / "said").read_text()
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    records = {Path(record["clip"]).name: record for record in map(json.loads, out.read_text().splitlines())}
    assert sorted(records) == names
    assert len(out.read_text().splitlines()) == len(names)
    model = load(packed)
    expected = model.score([incoming / name[0] / name for name in names], "00")
    assert [records[name]["score"] for name in names] == pytest.approx([each.score for each in expected], abs=1e-5)
    assert "Input/output error" in (tmp_path / "said").read_text()


def test_a_watch_begins_while_its_disk_fails(run: Path, cache: Path, tmp_path: Path, made: Path):
    packed, incoming = tmp_path / "fan.rayasd", tmp_path / "in"
    incoming.mkdir()
    write_pack(packed, [RunModels(run).parts("fan")])
    words = command_line("score", packed, "--section", "00", "--watch", incoming)
    process = subprocess.Popen(
        words, env=environment(cache, **failing(made, incoming, 1)), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    assert any("Input/output error" in line for line in lines)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


@pytest.mark.parametrize("where", ["tree", "run", "cache"])
def test_a_sweep_on_a_disk_that_fails_goes_on_to_the_same_bits(
    where: str, run: Path, tree: Path, tmp_path: Path, made: Path
):
    again, cache = tmp_path / "run", tmp_path / "cache"
    command = small_sweep(tree, again, "--variants", "statistics", "--detectors", "knn-1", "--machines", "fan")
    below, codes = {"tree": tree, "run": again, "cache": cache}[where], []
    for one_in in (30, 100, 300, 1000, 3000, 10**9):
        variables = environment(cache, **failing(made, below, one_in))
        done = subprocess.run(command_line(*command), env=variables, capture_output=True, text=True, check=False)
        codes.append(done.returncode)
        assert "Traceback" not in done.stdout + done.stderr
        if done.returncode == 0:
            break
        assert done.returncode in CODES or (done.returncode == 2 and one_in < 10**9), done.stdout + done.stderr
        assert any(word in done.stdout + done.stderr for word in ("look at its disk", "Input/output error", "I/O")), (
            done.stdout + done.stderr
        )
    assert codes[-1] == 0
    assert len(codes) > 1
    files = [path.relative_to(run) for path in sorted(run.rglob("part-0.parquet"))]
    assert files
    for path in files:
        assert (again / path).read_bytes() == (run / path).read_bytes(), path
