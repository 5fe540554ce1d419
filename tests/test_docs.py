"""Code and commands in the documentation do what it says."""

import re
import shlex
import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from rayasd.cli.main import cli
from rayasd.presets import load
from tests.conftest import Rayasd

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def commands() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page, "console") for line in block.splitlines()]
    found = [line.removeprefix("$ ").partition("#")[0].strip() for line in lines if line.startswith("$ ")]
    return sorted({line[line.index("rayasd ") :] for line in found if "rayasd " in line and "pip install" not in line})


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_docs_has_options_that_exist(command: str):
    """Parse the command line as far as click goes; paths in it need not be there."""
    words = shlex.split(command)[1:]
    result = CliRunner().invoke(cli, [*words, "--help"])
    assert result.exit_code == 0, result.output
    group = cli
    while words and words[0] in getattr(group, "commands", {}):
        group = group.commands[words.pop(0)]  # type: ignore[attr-defined]
    group.make_context("docs", words, resilient_parsing=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_the_docs_leads_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_variant_of_the_docs_is_a_preset(tmp_path: Path):
    (text,) = blocks(ROOT / "docs/extending.md", "toml")
    assert tomllib.loads(text)
    (tmp_path / "mine.toml").write_text(text)
    assert load(str(tmp_path / "mine.toml")).variant("long-windows").front_end.window_seconds == 4.0


@pytest.mark.slow
def test_the_detector_of_the_docs_gets_its_row(tree: Path, tmp_path: Path, rayasd: Rayasd):
    (code,) = blocks(ROOT / "docs/extending.md", "python")
    (tmp_path / "my_detectors.py").write_text(code)
    sweep = ["sweep", "--data", tree, "--preset", "demo", "--variants", "statistics", "--executor", "local"]
    detectors = "knn-1,my_detectors.ZDistance(floor=0.01)"
    done = rayasd(*sweep, "--run-dir", tmp_path / "run", "--detectors", detectors, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    board = pq.read_table(tmp_path / "run/leaderboard.parquet").to_pylist()
    mine = [row for row in board if row["detector"] == "my_detectors.ZDistance(floor=0.01)"]
    assert len(mine) == 2  # one a pooling
    assert all(row["cells_ok"] == row["cells_expected"] > 0 for row in mine)
