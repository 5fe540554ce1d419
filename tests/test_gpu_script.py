"""The prepared script for a GPU works, here on a CPU with tiny sizes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import PARTS, exit_code
from benchmarks.gpu.results import HEADER, Outcome, Row, at_least, at_most, number, table
from benchmarks.gpu.running import Work, run_part

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
BLOCKING = """
import os, sys
class Blocked:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in os.environ["BLOCKED"].split(","):
            open(os.environ["ATTEMPTS"], "a").write(name + "\\n")
            raise ImportError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked)
"""
"""A sitecustomize.py that lets some modules not be imported, and notes who tries."""
DISTURBED = """
import sys
from benchmarks.gpu import checks
from benchmarks.gpu.__main__ import main
embedded = checks.embedded
checks.embedded = lambda config, compute, samples: embedded(config, compute, samples // checks.calls.pop())
checks.calls = [2, 1]
sys.exit(main(["--tiny", "--out", sys.argv[1], "embeddings"]))
"""


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "OUT"}
    return {**kept, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), **variables}


def script(folder: Path, *options: str, blocked: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run the script with modules blocked; returns also which of these somebody tried to import."""
    (folder / "sitecustomize.py").write_text(BLOCKING)
    attempts = folder / "attempts"
    variables = environment(PYTHONPATH=str(folder), BLOCKED=blocked, ATTEMPTS=str(attempts))
    command = ["bash", ROOT / "benchmarks/gpu.sh", "--tiny", "--out", folder / "out", *options]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False)
    return done, attempts.read_text().split() if attempts.exists() else []


def test_a_tiny_run_on_a_cpu_checks_and_times_everything_without_ray(tmp_path: Path):
    done, attempts = script(tmp_path, blocked="ray,tomli_w")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ray" not in attempts
    assert "tomli_w" not in attempts
    content = json.loads((tmp_path / "out/gpu.json").read_text())
    parts = {part["name"]: part for part in content["parts"]}
    assert list(parts) == [part.name for part in PARTS]
    for part in parts.values():
        assert (part["status"], part["reason"], bool(part["rows"])) == ("ok", "", True), part
    checked = [row for part in PARTS if part.correctness for row in parts[part.name]["rows"] if row["bound"]]
    assert len(checked) == 8
    assert all(row["passed"] for row in checked)
    figures = {row["what"]: row["value"] for name in ("training", "packing") for row in parts[name]["rows"]}
    for what in ("ours", "the plain way", "ours, peak memory", "share of it", "1 at once, together", "2 at once, each"):
        assert figures[what] > 0
    timed = next(row for row in parts["training"]["rows"] if row["what"] == "ours")
    assert timed["low"] <= timed["value"] <= timed["high"]

    lines = (tmp_path / "out/gpu.md").read_text().splitlines()
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    assert cells[0] == HEADER
    assert all(len(line) == len(HEADER) for line in cells)
    for name, part in parts.items():
        of_part = {line[1]: line for line in cells if line[0] == name}
        assert of_part["whole part"][6:] == (part["status"], part["reason"])
        assert [line[1:3] for line in cells if line[0] == name][1:] == [
            (row["what"], number(row["value"])) for row in part["rows"]
        ]


def test_a_missing_package_ends_the_script_at_once_in_one_line(tmp_path: Path):
    done, _ = script(tmp_path, blocked="soundfile,xxhash")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("not installed: xxhash, soundfile; carry their wheels in .whl/")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_disturbed_inputs_fail_the_check_and_the_script(tmp_path: Path):
    command = [sys.executable, "-c", DISTURBED, tmp_path]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    parts = {part["name"]: part for part in json.loads((tmp_path / "gpu.json").read_text())["parts"]}
    assert parts["embeddings"]["status"] == "failed"
    assert "distance of embeddings" in parts["embeddings"]["reason"]
    assert parts["losses"] == {
        "name": "losses", "status": "skipped", "reason": "not among the parts asked for", "seconds": 0.0, "rows": [],
    }  # fmt: skip


def slow(work: Work) -> Iterator[Row]:
    yield Row("first", 1.0)
    time.sleep(60)


def broken(work: Work) -> Iterator[Row]:
    yield Row("first", 1.0)
    raise RuntimeError("out of\nmemory")


def killed(work: Work) -> Iterator[Row]:
    yield at_most("second", float("nan"), 1)
    os.kill(os.getpid(), 9)


@pytest.mark.parametrize(
    ("function", "status", "reason"),
    [
        (slow, "failed", "it took longer than its 2 s"),
        (broken, "failed", "RuntimeError: out of memory"),
        (killed, "failed", "second: nan is not at most 1"),
    ],
)
def test_a_part_that_ends_badly_keeps_its_rows_and_says_why(tmp_path: Path, function, status: str, reason: str):
    began = time.monotonic()
    outcome = run_part("resume", function, Work(tmp_path, tiny=True), 2)
    assert time.monotonic() - began < 30
    assert (outcome.status, outcome.reason, len(outcome.rows)) == (status, reason, 1)
    assert reason in table([outcome])
    assert exit_code([outcome]) == (status == "failed")


def test_bounds_hold_for_numbers_alone_and_speed_decides_no_exit_code():
    assert at_most("", 1.0, 1).passed
    assert not at_most("", 1.1, 1).passed
    assert not at_least("", 0.9, 1).passed
    assert not at_least("", float("nan"), 1).passed
    assert exit_code([Outcome("training", "failed", "x"), Outcome("losses", "skipped", "x")]) == 0
